use super::*;

fn read(text: &str) -> Result<Trace, TraceError> {
    Trace::read(text.as_bytes(), 4, BlockScope::Session)
}

fn fault(text: &str) -> String {
    read(text).expect_err("faulty").to_string()
}

#[test]
fn a_line_of_mooncakes_is_a_request() {
    let trace = read(
        r#"{"timestamp": 1500, "input_length": 10, "output_length": 3, "hash_ids": [7, 8, 9]}

{"timestamp": 0.5, "input_length": 8, "output_length": 1, "hash_ids": [7, 8], "other": null}"#,
    )
    .unwrap();
    let arrivals: Vec<_> = trace.requests.iter().map(|request| request.arrival).collect();
    assert_eq!(
        arrivals,
        [1_500_000, 500].map(|micros| Arrival::At(Duration::from_micros(micros)))
    );
    assert_eq!(trace.requests[0].blocks[..2], trace.requests[1].blocks[..]);
    assert_eq!(trace.requests[0].blocks.len(), 3);
    assert_eq!(
        (trace.requests[0].input_tokens, trace.requests[0].output_tokens),
        (10, 3)
    );
}

#[test]
fn a_sessions_request_follows_the_answer_before_it() {
    let session = |id: &str, rest: &str| {
        format!(r#"{{"session_id":{id},"input_length":8,"output_length":1,"hash_ids":[0,1],{rest}}}"#)
    };
    let text = [
        session("\"a\"", "\"timestamp\":10"),
        session("5", "\"timestamp\":20"),
        session("\"a\"", "\"delay\":30"),
        session("\"a\"", "\"delay\":40,\"timestamp\":99"),
    ]
    .join("\n");
    let trace = read(&text).unwrap();
    let after = |previous, delay| Arrival::After {
        previous,
        delay: Duration::from_millis(delay),
    };
    assert_eq!(trace.requests[2].arrival, after(0, 30));
    assert_eq!(trace.requests[3].arrival, after(2, 40));
    assert_eq!(trace.successors(), [Some(2), None, Some(3), None]);
    let sessions: Vec<_> = trace.requests.iter().map(|request| request.session).collect();
    assert_eq!(sessions, [1, 2, 1, 1]);
    assert_ne!(
        trace.requests[0].blocks, trace.requests[1].blocks,
        "sessions number apart"
    );
    let shared = Trace::read(text.as_bytes(), 4, BlockScope::Trace).unwrap();
    assert_eq!(shared.requests[0].blocks, shared.requests[1].blocks);
}

#[test]
fn the_last_block_may_lack_an_id_and_ids_beyond_the_prompt_are_ignored() {
    let line =
        |ids: &str| format!(r#"{{"timestamp":0,"input_length":6,"output_length":1,"hash_ids":[{ids}]}}"#);
    assert_eq!(read(&line("1")).unwrap().requests[0].blocks.len(), 1);
    assert_eq!(read(&line("1,2,3")).unwrap().requests[0].blocks.len(), 2);
    assert_eq!(
        fault(&line("")),
        "line 1: `hash_ids` has 0 ids; `input_length` 6 has 1 whole blocks of 4 tokens"
    );
}

#[test]
fn each_faulty_line_is_named_with_what_is_wrong() {
    let good = r#"{"timestamp":0,"input_length":4,"output_length":1,"hash_ids":[1]}"#;
    let lines = [
        good,
        "{",
        r#"{"timestamp":0,"output_length":1,"hash_ids":[1]}"#,
        r#"{"timestamp":-1,"input_length":4,"output_length":1,"hash_ids":[1]}"#,
        r#"{"input_length":4,"output_length":1,"hash_ids":[1]}"#,
        r#"{"timestamp":0,"input_length":4,"output_length":0,"hash_ids":[1]}"#,
        r#"{"session_id":"s","timestamp":0,"input_length":4,"output_length":1,"hash_ids":[1]}"#,
        r#"{"session_id":"s","timestamp":0,"input_length":4,"output_length":1,"hash_ids":[1]}"#,
        good,
    ];
    let faults = fault(&lines.join("\n"));
    let expected = [
        "line 2: EOF while parsing an object, at column 1",
        "line 3: missing field `input_length`, at column 48",
        "line 4: `timestamp` is -1; it must be milliseconds, 0 or more",
        "line 5: `timestamp` is missing: only a session's later requests have none",
        "line 6: `output_length` is 0; it must be 1 to 100000000 tokens",
        "line 8: `delay` is missing: a session's later requests need the milliseconds after its previous answer",
    ];
    assert_eq!(faults, expected.join("\n"));
}

#[test]
fn many_faulty_lines_are_counted() {
    let faults = fault(&"nonsense\n".repeat(25));
    assert_eq!(faults.lines().count(), MAX_FAULTS + 1);
    assert!(faults.ends_with("\nand 15 more lines"), "{faults}");
    assert_eq!(fault("\n \n"), "the trace has no request");
}

#[test]
fn speed_divides_arrivals_and_delays() {
    let text = r#"{"session_id":1,"timestamp":3000,"input_length":4,"output_length":1,"hash_ids":[1]}
{"session_id":1,"delay":500,"input_length":4,"output_length":1,"hash_ids":[1]}"#;
    let trace = read(text).unwrap().at_speed(2.0);
    assert_eq!(
        trace.requests[0].arrival,
        Arrival::At(Duration::from_millis(1_500))
    );
    let delay = Duration::from_millis(250);
    assert_eq!(trace.requests[1].arrival, Arrival::After { previous: 0, delay });
}
