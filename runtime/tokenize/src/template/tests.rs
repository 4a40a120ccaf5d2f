use minijinja::value::Serde;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::artifacts::SpecialToken;
use crate::values::value;

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

fn compile(source: &str) -> Result<ChatTemplate, ArtifactError> {
    ChatTemplate::compile(source, &special(), MessagePreparation::Signalbox)
}

/// Renders with `extra`, an object or null, as variables.
fn render_with(source: &str, messages: Json, extra: &Json) -> Result<String, TextError> {
    let extra = extra.as_object().into_iter().flatten();
    let variables = extra.map(|(name, member)| (&**name, value(member)));
    compile(source)
        .unwrap()
        .render(Value::from(Serde(messages)), variables)
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
        render("{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}"),
        "<s>||False"
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
    assert_eq!(
        print("(true)"),
        print("(ensure_ascii=True)"),
        "the first argument"
    );
    assert_eq!(print("(false, 2)"), indented);
    assert!(render_with("{{ 1 | tojson(colour=1) }}", json!([]), &Json::Null).is_err());
    for (expression, expected) in [
        ("x", "[1e-05, 1e+16, 1.0, 18446744073709551616]"),
        ("{1: 1, true: 2, none: 3}", r#"{"1": 2, "null": 3}"#),
        ("'a\\x7f\\x01'", "\"a\\u007f\\u0001\""),
        ("(1, 2)", "[1, 2]"),
    ] {
        let extra = json!({"x": [1e-5, 1e16, 1.0, {"\u{0}integer": "18446744073709551616"}]});
        let source = format!("{{{{ {expression} | tojson(ensure_ascii=true) }}}}");
        assert_eq!(render_with(&source, json!([]), &extra).unwrap(), expected);
    }
    assert!(render_with("{{ nothing | tojson }}", json!([]), &Json::Null).is_err());
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
    let error = compile("a\n{% if %}").map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("the chat template cannot be compiled") && error.contains("line 2"),
        "{error}"
    );
}

#[test]
fn variables_never_replace_the_messages_and_the_last_of_a_name_counts() {
    let template = compile("{{ x }}{{ messages | length }}").unwrap();
    let variables = [("x", 1), ("messages", 2), ("x", 3)];
    let variables = variables.map(|(name, number)| (name, Value::from(number)));
    let messages = Value::from(Serde(json!([1, 2])));
    assert_eq!(template.render(messages, variables.into_iter()).unwrap(), "32");
}

#[test]
fn what_only_another_template_engine_can_render_is_no_fault_of_the_client() {
    for source in [
        "{{ 'a' | xmlattr }}",
        "{{ 'a'.encode() }}",
        "{{ unknown_function() }}",
        "{{ 'a' + (x | safe) }}",
    ] {
        let error = render_with(source, json!([]), &json!({"x": "<"})).unwrap_err();
        assert!(error.is_unrenderable(), "{source}: {error}");
    }
    let refusal = render_with("{{ raise_exception('no') }}", json!([]), &Json::Null).unwrap_err();
    assert!(!refusal.is_unrenderable());
}

/// The expected texts are those of Jinja2 3.1.6 on CPython 3.11.
#[test]
fn jinja2s_tests_hold_for_the_same_values() {
    for (expression, expected) in [
        ("none is iterable", "False"),
        ("x is iterable", "True"),
        ("'a' is iterable", "True"),
        ("{} is iterable", "True"),
        ("1 is iterable", "False"),
        ("none is sequence", "False"),
        ("'a' is sequence", "True"),
        ("{} is sequence", "True"),
        ("[] is sequence", "True"),
        ("1 is sequence", "False"),
        ("raise_exception is callable", "True"),
        ("m is callable", "True"),
        ("'a' is callable", "False"),
        ("namespace(a=1) is callable", "False"),
        ("odd is number", "True"),
        ("odd is float", "True"),
        ("odd is integer", "False"),
        ("odd is mapping", "False"),
        ("odd is callable", "False"),
    ] {
        let source = format!("{{% macro m() %}}{{% endmacro %}}{{{{ {expression} }}}}");
        let extra = json!({"odd": 1e-7});
        assert_eq!(
            render_with(&source, json!([]), &extra).unwrap(),
            expected,
            "{expression}"
        );
    }
}

/// The expected texts are those of Jinja2 3.1.6 on CPython 3.11.
#[test]
fn filters_and_methods_give_what_jinja2_gives() {
    for (expression, expected) in [
        (r"'\x1c a \x1f' | trim", "a"),
        (r"'\x1c a \x1f'.strip()", "a"),
        ("'xxaxx' | trim('x')", "a"),
        ("['\\u3000'] | trim", "['\\u3000']"),
        ("'a\\nb\\n' | indent", "a\n    b\n"),
        ("'a\\n\\nb' | indent(2, true)", "  a\n\n  b"),
        ("'a\\n\\nb' | indent(width='>', blank=true)", "a\n>\n>b"),
        ("'x' | int", "0"),
        ("'x' | int(7)", "7"),
        ("' 42 ' | int", "42"),
        ("'3.9' | int", "3"),
        ("'ff' | int(base=16)", "255"),
        ("none | int", "0"),
        ("[] | float(default=2)", "2"),
        ("'x' | float", "0.0"),
        ("'1e-7' | float", "1e-07"),
        ("true | int", "1"),
        ("'a b_c, d' | wordcount", "3"),
        ("'hello big world' | truncate(9, leeway=0)", "hello..."),
        ("'hello big world' | truncate(9, true, '~', 0)", "hello bi~"),
        ("'hello big world' | truncate(12)", "hello big world"),
        ("'[' ~ ('ab' | center(5)) ~ ']'", "[  ab ]"),
        ("'a b/ü?' | urlencode", "a%20b/%C3%BC%3F"),
        ("\"it's a they're\".title()", "It'S A They'Re"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("' a  b c '.rsplit(none, 1)", "[' a  b', 'c']"),
        ("' a  b c '.split(maxsplit=1)", "['a', 'b c ']"),
        ("' a  b c '.split()", "['a', 'b', 'c']"),
        ("'a,b'.split(',')", "['a', 'b']"),
        ("'a=b=c'.partition('=')", "('a', '=', 'b=c')"),
        ("'abc'.rpartition('=')", "('', '', 'abc')"),
        ("'abc'.removeprefix('a').removesuffix('c')", "b"),
        ("'abcb'.index('b')", "1"),
        ("'abcb'.rindex('b')", "3"),
        ("'-5'.zfill(4)", "-005"),
        (
            "'a'.ljust(3, '.') ~ 'a'.rjust(3) ~ 'ab'.center(5, '-')",
            "a..  a--ab-",
        ),
        ("'aB'.swapcase()", "Ab"),
        ("'Straße'.casefold()", "strasse"),
        ("'a\\tb'.expandtabs(4)", "a   b"),
        ("[1, 2, 3].index(2)", "1"),
        ("{'a': 1}.copy()", "{'a': 1}"),
        ("odd", "1e-05"),
        ("'n: ' ~ odd", "n: 1e-05"),
        ("[odd]", "[1e-05]"),
        ("odd | string", "1e-05"),
        ("['\\u3000é'] | string", "['\\u3000é']"),
        ("{'a': ['\\u00a0']}", "{'a': ['\\xa0']}"),
        ("'<\\'\"&' | e", "&lt;&#39;&#34;&amp;"),
        ("'<' | safe", "<"),
        ("strftime_now('%Z')", ""),
    ] {
        let rendered = render_with(
            &format!("{{{{ {expression} }}}}"),
            json!([]),
            &json!({"odd": 1e-5}),
        );
        assert_eq!(rendered.as_deref(), Ok(expected), "{expression}");
    }
}

/// The expected texts are those of Jinja2 3.1.6 on CPython 3.11.
#[test]
fn the_mark_of_an_escaped_text_has_no_effect_but_where_it_is_added() {
    for (source, expected) in [
        ("{{ '<' ~ (x | safe) ~ '>' }}", "<<>"),
        ("{% set y = x | safe %}{{ '<' }}{{ y }}{{ '<' ~ y }}", "<<<<"),
        (
            "{% macro m(a) %}{{ a | e }}{% endmacro %}{{ '<' + m('<') + '<' }}",
            "<&lt;<",
        ),
        ("{% set y = x | safe %}{{ [y, '<'] | join('<') + '<' }}", "<<<<"),
        ("{{ x | safe if x else '' }}{{ '<' + x }}", "<<<"),
    ] {
        let rendered = render_with(source, json!([]), &json!({"x": "<"}));
        assert_eq!(rendered.as_deref(), Ok(expected), "{source}");
    }
    for source in [
        "{{ '<' + (x | safe) }}",
        "{% set y = x | e %}{% set z = y.strip() if y else y %}{{ z + '&' }}",
        "{% macro m(a) %}{{ a + '<' }}{% endmacro %}{{ m(x | safe) }}",
        "{% set n = namespace(y='') %}{% set n.y = x | safe %}{{ n.y + '<' }}",
        "{% for y in [x | safe] %}{{ '<' + y[1:] }}{% endfor %}",
    ] {
        let error = render_with(source, json!([]), &json!({"x": "<"})).unwrap_err();
        assert!(error.is_unrenderable(), "{source}: {error}");
    }
}

#[test]
fn blocks_print_their_content_in_place() {
    assert_eq!(render("a{% block b %}c{% endblock %}d"), "acd");
}

proptest! {
    #[test]
    fn compiling_a_template_never_panics(source in "(\\{%|%\\}|\\{\\{|\\}\\}|-|generation|endgeneration| |é|if x|endif){0,12}") {
        let _ = compile(&source);
    }
}
