use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::artifacts::SpecialToken;

fn special() -> SpecialTokens {
    let bos = Some(SpecialToken {
        id: 1,
        content: "<s>".to_owned(),
    });
    SpecialTokens {
        bos,
        ..Default::default()
    }
}

fn render_with(source: &str, messages: Json, extra: &Json) -> Result<String, TextError> {
    ChatTemplate::compile(source, &special())
        .unwrap()
        .render(Value::from(Serde(messages)), extra)
}

fn render(source: &str) -> String {
    render_with(source, json!([{"role": "user", "content": "hi"}]), &Json::Null).unwrap()
}

#[test]
fn blocks_are_trimmed_as_in_the_reference() {
    let source = "{% for message in messages %}\n    {% if true %}\n{{ message.content }}\n    {% endif %}\n{% endfor %}\nend\n";
    assert_eq!(render(source), "hi\nend");
}

#[test]
fn templates_find_the_references_variables_and_functions() {
    assert_eq!(
        render("{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}"),
        "<s>||True"
    );
    assert_eq!(
        render("{{ tools is defined }} {{ tools is none }} {{ documents is none }} {{ x is defined }}"),
        "True True True False"
    );
    assert_eq!(
        render("{{ ' a b '.strip().split(' ')[-1].upper() }}{{ 'abc'.startswith('ab') }}{{ 'abc'[::-1] }}"),
        "BTruecba"
    );
    assert_eq!(
        render(
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        ),
        "013"
    );
    assert_eq!(
        render(
            "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
        ),
        "3"
    );
    assert_eq!(
        render(
            "{%- macro m(a) -%}[{{ a }}]{%- endmacro -%}{{ m(1) }}{{ messages | map(attribute='role') | join(',') }}"
        ),
        "[1]user"
    );
    let year: i32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year > 2024);
    assert_eq!(
        render("{{ strftime_now('%d %b %Y') }}").len(),
        "26 Jul 2024".len()
    );
}

#[test]
fn generation_markers_print_nothing_and_still_trim_white_space() {
    assert_eq!(render("a{% generation %}b{% endgeneration %}c"), "abc");
    assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c"), "abc");
    assert_eq!(
        without_generation_markers("{% if x %}{%-generation%}{% broken"),
        "{% if x %}{%-if true%}{% broken"
    );
}

/// The expected texts are those of CPython 3.11's `json.dumps(…, ensure_ascii=False)`.
#[test]
fn tojson_writes_what_python_writes() {
    let value = json!({"b": [1, 2.5, null, true], "a": {}, "é<&'>": "ü\n\"\\", "c": []});
    let print = |arguments: &str| {
        render_with(
            &format!("{{{{ x | tojson{arguments} }}}}"),
            json!([]),
            &json!({ "x": value }),
        )
        .unwrap()
    };
    assert_eq!(
        print(""),
        r#"{"b": [1, 2.5, null, true], "a": {}, "é<&'>": "ü\n\"\\", "c": []}"#
    );
    assert_eq!(
        print("(ensure_ascii=True)"),
        r#"{"b": [1, 2.5, null, true], "a": {}, "\u00e9<&'>": "\u00fc\n\"\\", "c": []}"#
    );
    assert_eq!(
        print("(sort_keys=true)"),
        r#"{"a": {}, "b": [1, 2.5, null, true], "c": [], "é<&'>": "ü\n\"\\"}"#
    );
    assert_eq!(
        print("(separators=(',', ':'))"),
        r#"{"b":[1,2.5,null,true],"a":{},"é<&'>":"ü\n\"\\","c":[]}"#
    );
    let indented = "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"a\": {},\n  \"é<&'>\": \"ü\\n\\\"\\\\\",\n  \"c\": []\n}";
    assert_eq!(print("(indent=2)"), indented);
    assert!(render_with("{{ 1 | tojson(colour=1) }}", json!([]), &Json::Null).is_err());
}

#[test]
fn the_message_of_raise_exception_reaches_the_client() {
    let source =
        "{% if messages[0].role != 'system' %}{{ raise_exception('roles must alternate') }}{% endif %}";
    let error = render_with(source, json!([{"role": "user"}]), &Json::Null).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model's chat template refuses these messages: roles must alternate"
    );
    assert_eq!(error.param_name(), Some("messages"));
    let nested = format!("{{% macro check() %}}{source}{{% endmacro %}}{{{{ check() }}}}");
    let error = render_with(&nested, json!([{"role": "user"}]), &Json::Null).unwrap_err();
    assert!(error.to_string().ends_with("roles must alternate"), "{error}");
}

#[test]
fn a_rendering_that_exceeds_its_bounds_fails() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ 'x' * 999999999999 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ] {
        assert!(render_with(source, json!([]), &Json::Null).is_err(), "{source}");
    }
}

#[test]
fn a_template_that_does_not_compile_gives_an_error_with_the_line() {
    let error = ChatTemplate::compile("a\n{% if %}", &special())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the chat template cannot be compiled") && error.contains("line 2"),
        "{error}"
    );
}

#[test]
fn extra_members_become_variables_and_never_replace_the_messages() {
    let extra = json!({"enable_thinking": false, "messages": [], "add_generation_prompt": false});
    let source = "{{ enable_thinking is false }}{{ messages | length }}{{ add_generation_prompt }}";
    assert_eq!(render_with(source, json!([1, 2]), &extra).unwrap(), "True2False");
    let error = render_with(source, json!([]), &json!([1])).unwrap_err();
    assert_eq!(error.param_name(), Some("chat_template_kwargs"));
}

proptest! {
    #[test]
    fn compiling_a_template_never_panics(source in "(\\{%|%\\}|\\{\\{|\\}\\}|-|generation|endgeneration| |é|if x|endif){0,12}") {
        let _ = ChatTemplate::compile(&source, &special());
    }
}
