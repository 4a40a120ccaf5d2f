use super::*;

/// A row of [`WorkerRows`].
#[derive(Debug, Clone, Copy)]
struct Row {
    overlap: [u32; 3],
    prefill_tokens: u32,
    decode_blocks: u32,
    requests: u32,
    kv_blocks_total: u32,
    scale: [f32; 2],
    recent_share: f32,
}

const IDLE: Row = Row {
    overlap: [0; 3],
    prefill_tokens: 0,
    decode_blocks: 0,
    requests: 0,
    kv_blocks_total: 1_000,
    scale: [1.0; 2],
    recent_share: 1.0,
};

/// A prompt of 10 blocks of 16 tokens.
const PROMPT: RequestLength = RequestLength {
    prompt_tokens: 160,
    block_size: 16,
    answer_limit: None,
};

/// The time until the first token alone.
const WAIT_ONLY: TtftCost = TtftCost {
    step_tokens: 8_192.0,
    pressure_ms: 0.0,
    interruption: 0.0,
    company: 0.0,
    company_requests: 1.0,
    answer_tokens: 400.0,
    churn: 0.0,
    host_weight: 0.75,
    disk_weight: 0.25,
};

fn costs(cost: TtftCost, request: RequestLength, rows: &[Row]) -> Vec<f32> {
    fn column<T>(rows: &[Row], value: impl Fn(&Row) -> T) -> Vec<T> {
        rows.iter().map(value).collect()
    }
    let workers = WorkerRows {
        overlap_device: &column(rows, |row| row.overlap[0]),
        overlap_host: &column(rows, |row| row.overlap[1]),
        overlap_disk: &column(rows, |row| row.overlap[2]),
        prefill_tokens: &column(rows, |row| row.prefill_tokens),
        decode_blocks: &column(rows, |row| row.decode_blocks),
        requests: &column(rows, |row| row.requests),
        kv_blocks_total: &column(rows, |row| row.kv_blocks_total),
        prefill_scale: &column(rows, |row| row.scale[0]),
        decode_scale: &column(rows, |row| row.scale[1]),
        recent_share: &column(rows, |row| row.recent_share),
    };
    cost.costs(&StepCurves::default(), &request, &workers)
}

fn prefill_ms(tokens: f32) -> f32 {
    16.501_42 + 1.518_344e-2 * tokens + 4.209_989e-7 * tokens * tokens
}

#[track_caller]
fn assert_near(actual: f32, expected: f32) {
    assert!(
        (actual - expected).abs() <= 1e-4 * expected.abs() + 1e-3,
        "{actual} is not {expected}"
    );
}

#[test]
fn the_wait_is_the_prefill_of_queue_and_prompt_with_a_decode_step_each() {
    let queued = Row {
        prefill_tokens: 10_000,
        ..IDLE
    };
    let costs = costs(WAIT_ONLY, PROMPT, &[IDLE, queued]);
    assert_near(costs[0], prefill_ms(160.0) + 5.74);
    // 8,192 tokens, then 1,968.
    assert_near(costs[1], prefill_ms(8_192.0) + prefill_ms(1_968.0) + 2.0 * 5.74);
}

#[test]
fn what_the_caches_hold_is_not_computed_but_for_the_last_token() {
    let half = Row {
        overlap: [4, 2, 2],
        ..IDLE
    };
    let whole = Row {
        overlap: [10, 0, 0],
        ..IDLE
    };
    let costs = costs(WAIT_ONLY, PROMPT, &[half, whole]);
    // 4 + 0.75 * 2 + 0.25 * 2 blocks.
    assert_near(costs[0], prefill_ms(64.0) + 5.74);
    assert_near(costs[1], prefill_ms(1.0) + 5.74);
}

#[test]
fn a_slower_worker_takes_longer() {
    let slow = Row {
        scale: [2.0, 3.0],
        ..IDLE
    };
    assert_near(
        costs(WAIT_ONLY, PROMPT, &[slow])[0],
        2.0 * prefill_ms(160.0) + 3.0 * 5.74,
    );
}

#[test]
fn memory_has_a_price_from_nine_tenths_of_the_cache_to_half_more_than_it_has() {
    let at = |decode_blocks| Row {
        decode_blocks,
        ..IDLE
    };
    let cost = TtftCost {
        pressure_ms: 50.0,
        ..WAIT_ONLY
    };
    let rows = [at(890), at(990), at(1_490), at(3_000)];
    let (priced, free) = (costs(cost, PROMPT, &rows), costs(WAIT_ONLY, PROMPT, &rows));
    assert_near(priced[0], free[0]);
    // 100 blocks of 16 tokens.
    assert_near(priced[1] - free[1], 50.0 * 1.6);
    assert_near(priced[2] - free[2], 50.0 * 9.6);
    assert_near(priced[3] - free[3], 50.0 * 9.6);
}

#[test]
fn company_counts_in_a_quiet_cluster_and_hardly_in_a_busy_one() {
    let cost = TtftCost {
        company: 1.0,
        ..WAIT_ONLY
    };
    let with = |requests| Row {
        decode_blocks: 100 * requests,
        requests,
        ..IDLE
    };
    let surcharge = |rows: &[Row], limit| {
        let request = RequestLength {
            answer_limit: limit,
            ..PROMPT
        };
        let (priced, free) = (costs(cost, request, rows), costs(WAIT_ONLY, request, rows));
        priced
            .iter()
            .zip(free)
            .map(|(priced, free)| priced - free)
            .collect::<Vec<_>>()
    };
    let decode = |share: f32| 5.74 + 54.01 * share - 25.74 * share * share;
    let quiet = surcharge(&[with(0), with(1)], None);
    assert_near(quiet[0], 0.0);
    // Half a request per worker: the weight is 1 / 1.25.
    let slower = (decode(0.11) - decode(0.01)) + (decode(0.11) - decode(0.1));
    assert_near(quiet[1], 0.8 * 400.0 * slower);
    let short = surcharge(&[with(0), with(1)], Some(40));
    assert_near(short[1], quiet[1] / 10.0);
    let busy = surcharge(&[with(8), with(9)], None);
    assert!(busy[1] - busy[0] < quiet[1] / 10.0, "{busy:?} {quiet:?}");
}

#[test]
fn interruption_and_churn_are_shares_of_the_new_prefill() {
    let cost = TtftCost {
        interruption: 0.5,
        churn: 0.25,
        ..WAIT_ONLY
    };
    let row = Row {
        requests: 2,
        recent_share: 3.0,
        ..IDLE
    };
    let surcharge = costs(cost, PROMPT, &[row])[0] - costs(WAIT_ONLY, PROMPT, &[row])[0];
    let churn = 0.25 * 3.0 * (prefill_ms(160.0) - prefill_ms(0.0));
    assert_near(surcharge, 0.5 * 2.0 * prefill_ms(160.0) + churn);
}

/// What a router may not know, or has wrong, must not make a cost that is no number.
#[test]
fn every_cost_is_finite() {
    let unknown = Row {
        kv_blocks_total: 0,
        ..IDLE
    };
    let extreme = Row {
        overlap: [u32::MAX; 3],
        prefill_tokens: u32::MAX,
        decode_blocks: u32::MAX,
        requests: u32::MAX,
        kv_blocks_total: 1,
        ..IDLE
    };
    for request in [
        PROMPT,
        RequestLength {
            prompt_tokens: 0,
            block_size: 0,
            answer_limit: Some(0),
        },
        RequestLength {
            prompt_tokens: u32::MAX,
            block_size: 1,
            answer_limit: Some(u32::MAX),
        },
    ] {
        let costs = costs(TtftCost::default(), request, &[IDLE, unknown, extreme]);
        assert!(
            costs.iter().all(|cost| cost.is_finite()),
            "{request:?}: {costs:?}"
        );
    }
}
