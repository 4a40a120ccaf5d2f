use proptest::prelude::*;

use super::*;

const AUTO: ToolOutput = ToolOutput::Auto { one_call: false };

/// The text of an answer that arrives in these pieces, and its calls.
fn parse(output: &ToolOutput, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut parser = ToolCallParser::new(output.clone());
    let mut parts = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut parts);
    }
    parser.finish(&mut parts);
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for part in parts {
        match part {
            AnswerPart::Text(more) => text += &more,
            AnswerPart::Call { index, name } => {
                assert_eq!(index as usize, calls.len());
                calls.push((name, String::new()));
            }
            AnswerPart::Arguments { index, text } => {
                assert_eq!(index as usize + 1, calls.len());
                calls[index as usize].1 += &text;
            }
        }
    }
    assert_eq!(parser.has_calls(), !calls.is_empty());
    (text, calls)
}

fn pieces(text: &str) -> Vec<String> {
    text.chars().map(String::from).collect()
}

#[track_caller]
fn check(output: &ToolOutput, answer: &str, text: &str, calls: &[(&str, &str)]) {
    let calls: Vec<(String, String)> = calls
        .iter()
        .map(|(name, arguments)| ((*name).into(), (*arguments).into()))
        .collect();
    assert_eq!(
        parse(output, &[answer]),
        (text.to_owned(), calls.clone()),
        "whole"
    );
    let pieces = pieces(answer);
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    assert_eq!(
        parse(output, &pieces),
        (text.to_owned(), calls),
        "character by character"
    );
}

#[test]
fn the_calls_of_every_family_are_found() {
    let one = &[("f", r#"{"x": "a}\"]", "y": [1, {}]}"#)][..];
    let object = r#"{"name": "f", "arguments": {"x": "a}\"]", "y": [1, {}]}}"#;
    check(&AUTO, &format!("<tool_call>\n{object}\n</tool_call>"), "", one);
    check(
        &AUTO,
        &format!("I look.\n<tool_call>{object}</tool_call>\n"),
        "I look.",
        one,
    );
    check(&AUTO, &format!("<tool_call>[{object}]</tool_call>"), "", one);
    check(&AUTO, &format!("[TOOL_CALLS] [{object}]"), "", one);
    check(&AUTO, &format!("<|python_tag|>{object}"), "", one);
    check(&AUTO, &object.replace("arguments", "parameters"), "", one);
    check(&AUTO, r#"[TOOL_CALLS]f{"x": "a}\"]", "y": [1, {}]}"#, "", one);
    check(
        &AUTO,
        r#"[TOOL_CALLS]f[ARGS]{"x": "a}\"]", "y": [1, {}]}"#,
        "",
        one,
    );
    let two = &[("f", "{}"), ("g", r#"{"a": 1}"#)][..];
    let [f, g] = [
        r#"{"name": "f", "arguments": {}}"#,
        r#"{"name": "g", "arguments": {"a": 1}}"#,
    ];
    check(
        &AUTO,
        &format!("<tool_call>{f}</tool_call>\n<tool_call>{g}</tool_call>"),
        "",
        two,
    );
    check(&AUTO, &format!("<tool_call>[{f}, {g}]</tool_call>"), "", two);
    check(&AUTO, &format!("[{f}, {g}]"), "", two);
    check(&AUTO, &format!("{f}; {g}"), "", two);
    check(&AUTO, r#"[TOOL_CALLS]f{}[TOOL_CALLS]g{"a": 1}"#, "", two);
    check(
        &ToolOutput::Auto { one_call: true },
        &format!("[{f}, {g}]"),
        "",
        &two[..1],
    );
}

#[test]
fn members_come_in_any_order_and_arguments_in_any_shape() {
    for (object, arguments) in [
        (r#"{"arguments": {"a": 1}, "name": "f"}"#, r#"{"a":1}"#),
        (
            r#"{"id": 7, "name": "f", "arguments": {"a": 1}, "x": "}"}"#,
            r#"{"a": 1}"#,
        ),
        (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, r#"{"a": 1}"#),
        (r#"{"name": "f"}"#, "{}"),
        (r#"{"name": "f", "arguments": null}"#, "{}"),
    ] {
        check(
            &AUTO,
            &format!("<tool_call>{object}</tool_call>"),
            "",
            &[("f", arguments)],
        );
    }
}

#[test]
fn what_is_no_call_is_text() {
    for answer in [
        "Hello <b>you</b> [TOOL_C",
        "{\"answer\": 42}",
        "[1, 2, 3]",
        "  {\"na",
        "{",
        "The object {\"name\": \"f\", \"arguments\": {}} is a call.",
    ] {
        check(&AUTO, answer, answer, &[]);
    }
    check(&AUTO, "<tool_call>{\"nam\": 1}</tool_call>", "{\"nam\": 1}", &[]);
}

#[test]
fn arguments_that_break_off_are_written_as_far_as_they_go() {
    check(
        &AUTO,
        r#"<tool_call>{"name": "f", "arguments": {"a": "b"#,
        "",
        &[("f", r#"{"a": "b"#)],
    );
}

#[test]
fn a_required_answer_is_an_array_of_calls_and_a_named_one_the_arguments() {
    let required = ToolOutput::Required { one_call: false };
    let answer = r#"[{"name": "f", "parameters": {"x": 1}}, {"name": "g", "parameters": {}}]"#;
    check(&required, answer, "", &[("f", r#"{"x": 1}"#), ("g", "{}")]);
    let named = ToolOutput::Named { name: "f".into() };
    check(&named, r#"{"x": "}"}"#, "", &[("f", r#"{"x": "}"}"#)]);
}

#[test]
fn arguments_arrive_as_they_are_generated() {
    let mut parser = ToolCallParser::new(AUTO);
    let mut parts = Vec::new();
    parser.push(
        r#"<tool_call>{"name": "f", "arguments": {"city": "Par"#,
        &mut parts,
    );
    assert_eq!(
        parts,
        [
            AnswerPart::Call {
                index: 0,
                name: "f".into()
            },
            AnswerPart::Arguments {
                index: 0,
                text: r#"{"city": "Par"#.into()
            },
        ]
    );
}

proptest! {
    #[test]
    fn the_parts_do_not_depend_on_how_the_text_is_split(
        tokens in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "{\"name\": \"f\"", ", \"arguments\": ",
            "{\"a\": 1}", "{", "}", "[", "]", ",", "\"", "\\", " ", "é", "f", "\"parameters\":", ";",
        ]), 0..12),
        required: bool,
    ) {
        let output = if required { ToolOutput::Required { one_call: false } } else { AUTO };
        let whole = tokens.concat();
        let expected = parse(&output, &[&whole]);
        prop_assert_eq!(parse(&output, &tokens), expected.clone());
        let characters = pieces(&whole);
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        prop_assert_eq!(parse(&output, &characters), expected);
    }
}
