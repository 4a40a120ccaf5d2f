use super::*;
use crate::test_support::{PATIENCE, card, entry, model, request};
use signalbox_protocol::WorkerCard;
use std::sync::Arc;

/// A model with workers of these block sizes and digests of the tokenizer.
fn model_of(versions: &[(u32, &str)]) -> ModelEntry {
    let workers = versions.iter().enumerate().map(|(slot, (block_size, digest))| {
        let card = WorkerCard {
            block_size: *block_size,
            artifacts_digest: (*digest).into(),
            ..(*card("w", 1)).clone()
        };
        let mut worker = entry(u32::try_from(slot).unwrap(), "");
        worker.version = VersionId::of(&card);
        worker.card = Arc::new(card);
        worker
    });
    model(workers.collect())
}

fn number_of_blocks(request: &PreparedRequest, model: &ModelEntry) -> Vec<(u32, Option<usize>)> {
    let blocks = |version: &ModelVersion| request.prompt(version, 0).map(|prompt| prompt.blocks.len());
    let versions = model.versions.iter();
    let mut all: Vec<_> = versions
        .map(|version| (version.id.block_size, blocks(version)))
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn a_prompt_is_hashed_in_the_block_size_of_each_version_of_its_form() {
    let mut prepared = PreparedRequest::new(request(PATIENCE));
    let model = model_of(&[(16, "d"), (8, "d"), (4, "other")]);
    prepared.hash_for(&model);
    // 40 tokens; for another tokenizer they are none.
    assert_eq!(
        number_of_blocks(&prepared, &model),
        [(4, None), (8, Some(5)), (16, Some(2))]
    );
    // A version that joins between two attempts.
    let model = model_of(&[(16, "d"), (8, "d"), (2, "d")]);
    prepared.hash_for(&model);
    assert_eq!(
        number_of_blocks(&prepared, &model),
        [(2, Some(20)), (8, Some(5)), (16, Some(2))]
    );
}

#[test]
fn each_form_has_its_own_tokens() {
    let mut first = request(PATIENCE);
    let mut other = request(PATIENCE);
    let model = model_of(&[(16, "d"), (16, "d"), (16, "other")]);
    let other_form = model.versions[1].id.form;
    (other.form, other.tokens) = (other_form, vec![7; 64]);
    first.other_forms.push(other);
    let mut prepared = PreparedRequest::new(first);
    prepared.hash_for(&model);
    let tokens = |version: &ModelVersion| prepared.prompt(version, 0).map(|prompt| prompt.tokens);
    let all: Vec<_> = model.versions.iter().map(tokens).collect();
    assert_eq!(all, [Some(40), Some(64)]);
    let formed = prepared.in_form(other_form).unwrap();
    assert_eq!(formed.blocks(model.versions[1].id).len(), 4);
    let taken = prepared.into_form(other_form).unwrap();
    assert_eq!(taken.tokens.len(), 64);
    assert!(taken.other_forms.is_empty());
}
