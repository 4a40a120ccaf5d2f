//! Converts tiktoken's vocabularies to `tokenizer.json`.
//!
//! A file has a line for each token: its bytes in base64 and its rank, which is its id. The merges of byte-pair encoding
//! follow from the ranks. How text is split into words is not in the file, but in the code that comes with a model.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::definition::{AddedToken, Definition, Words};
use crate::pieces::character_of;

/// The longest token, in bytes. The longest of published vocabularies, runs of spaces, have 128.
const MAX_TOKEN_BYTES: usize = 1024;
/// Kimi's tokenizer has this many tokens behind the vocabulary. Those without a name of their own are reserved.
const KIMI_SPECIAL_TOKENS: usize = 256;
/// The words of Kimi K2 and its successors (`tokenization_kimi.py`).
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.json` of a Kimi model, from its `tiktoken.model` and its named special tokens.
///
/// # Errors
/// A line is no token, or the ranks have gaps; the reason names the line or the rank.
pub(crate) fn kimi(file: &str, named: &HashMap<u32, String>) -> Result<Vec<u8>, String> {
    let tokens = tokens(file)?;
    let printable: Vec<String> = tokens
        .iter()
        .map(|token| token.iter().map(|byte| character_of(*byte)).collect())
        .collect();
    let merges: Vec<(&str, &str)> = merges(&tokens)
        .into_iter()
        .map(|(left, right)| (&*printable[left], &*printable[right]))
        .collect();
    let first = tokens.len() as u32;
    let special: Vec<(u32, String)> = (first..first + KIMI_SPECIAL_TOKENS as u32)
        .map(|id| {
            let name = named
                .get(&id)
                .cloned()
                .unwrap_or_else(|| format!("<|reserved_token_{id}|>"));
            (id, name)
        })
        .collect();
    let added = special.iter().map(|(id, name)| AddedToken::new(*id, name, true));
    let words = Words::Patterns(&[KIMI]);
    // tiktoken: a word that is a token becomes that token.
    let definition = Definition::byte_level(&printable, merges, added.collect(), &words, true, false);
    Ok(definition.to_json())
}

/// The tokens in the order of their ranks.
fn tokens(file: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut ranked = Vec::new();
    for (number, line) in file.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = || {
            format!(
                "line {} is no token; it should be a token in base64, a space and a rank",
                number + 1
            )
        };
        let (token, rank) = line.trim().split_once(' ').ok_or_else(wrong)?;
        let token = STANDARD.decode(token).map_err(|_| wrong())?;
        let rank: u32 = rank.trim().parse().map_err(|_| wrong())?;
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(format!(
                "the token of line {} has {} bytes; it should have 1 to {MAX_TOKEN_BYTES}",
                number + 1,
                token.len()
            ));
        }
        ranked.push((rank, token));
    }
    ranked.sort_unstable();
    for (expected, (rank, _)) in ranked.iter().enumerate() {
        if *rank as usize != expected {
            return Err(format!(
                "the rank {expected} is missing; ranks should be 0 to {}, each once",
                ranked.len() - 1
            ));
        }
    }
    Ok(ranked.into_iter().map(|(_, token)| token).collect())
}

/// The merges in the order of their ranks, each as the ids of the two tokens that become one. Merging the bytes of a
/// token by the ranks below its own leaves the two.
fn merges(tokens: &[Vec<u8>]) -> Vec<(usize, usize)> {
    let ranks: HashMap<&[u8], usize> = tokens
        .iter()
        .enumerate()
        .map(|(rank, token)| (&**token, rank))
        .collect();
    let mut merges = Vec::new();
    for (rank, token) in tokens.iter().enumerate() {
        // The ends of the parts of the token.
        let mut ends: Vec<usize> = (1..=token.len()).collect();
        while ends.len() > 2 {
            let joined = |index: usize| {
                let start = if index == 0 { 0 } else { ends[index - 1] };
                ranks.get(&token[start..ends[index + 1]]).copied()
            };
            let lowest = (0..ends.len() - 1)
                .filter_map(|index| Some((joined(index)?, index)))
                .min();
            match lowest {
                Some((of_pair, index)) if of_pair < rank => drop(ends.remove(index)),
                _ => break,
            }
        }
        if let [end, _] = *ends
            && let (Some(left), Some(right)) = (ranks.get(&token[..end]), ranks.get(&token[end..]))
        {
            merges.push((*left, *right));
        }
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_from_the_ranks() {
        let tokens: Vec<Vec<u8>> = ["a", "b", "c", "ab", "bc", "abc", "abcabc", "cc", "xyz"]
            .map(|token| token.as_bytes().to_vec())
            .to_vec();
        let merges = merges(&tokens);
        let texts: Vec<(&str, &str)> = merges
            .iter()
            .map(|(left, right)| {
                let text = |id: usize| std::str::from_utf8(&tokens[id]).unwrap();
                (text(*left), text(*right))
            })
            .collect();
        assert_eq!(
            texts,
            [("a", "b"), ("b", "c"), ("ab", "c"), ("abc", "abc"), ("c", "c")],
            "xyz cannot be reached by merges"
        );
    }

    #[test]
    fn damaged_files_are_refused_with_the_line() {
        for (file, expected) in [
            ("YQ== 0\nYg==\n", "line 2 is no token"),
            ("YQ== 0\n*** 1\n", "line 2 is no token"),
            ("YQ== 0\nYg== x\n", "line 2 is no token"),
            ("YQ== 0\nYg== 2\n", "the rank 1 is missing"),
            ("YQ== 0\nYg== 0\n", "the rank 1 is missing"),
        ] {
            let error = kimi(file, &HashMap::new()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
