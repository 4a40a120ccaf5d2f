//! Grammars that an answer obeys: which tokens may follow, given those that the answer has.
//!
//! The library `llguidance` compiles JSON schemas, regular expressions and Lark grammars, and computes which tokens of the
//! vocabulary may follow. This module gives it the model's vocabulary and bounds what a client's grammar may cost:
//!
//! - A grammar is at most [`MAX_GRAMMAR_BYTES`] long, nested at most `MAX_NESTING` deep, and compiled with the library's
//!   fuel, for some tens of milliseconds. It is compiled on a thread of its own, so that neither
//!   connections nor running answers wait.
//! - Each step of a sequence has fuel for some 20 ms, and the sequence's states have a bound.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock, Weak,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use signalbox_protocol::{Constraint, ConstraintKind, ErrorKind, WireError};
use signalbox_tokenize::ModelText;

/// Longest schema, expression or grammar in bytes, as clients send it.
pub const MAX_GRAMMAR_BYTES: usize = 64 << 10;

/// Deepest nesting of brackets in an expression or grammar: the library reads them by recursion. (It reads a schema as JSON,
/// whose depth has its own bound.)
const MAX_NESTING: usize = 64;

/// Most grammars of a model that are kept compiled. Clients repeat theirs: a batch of requests has one.
const MAX_KEPT: usize = 32;

/// Most requests that wait for their grammars: with the bound on each, some seconds.
const MAX_WAITING: usize = 64;

/// The stack of the thread that compiles, for what is nested as deep as it may.
const STACK_BYTES: usize = 64 << 20;

/// The grammar of one sequence, and how much of it the sequence has passed.
pub struct Grammar {
    matcher: Matcher,
    /// The tokens that may follow, once computed.
    allowed: Option<SimpleVob>,
    closing: Arc<[u32]>,
}

impl Grammar {
    /// Computes the tokens that may follow, if they are not known yet. Takes up to some 20 ms.
    pub fn prepare(&mut self) {
        if self.allowed.is_none() {
            self.allowed = self.matcher.compute_mask_or_eos().ok();
        }
    }

    /// The tokens that may follow. `None` if the grammar has become too complex for its bounds.
    pub fn allowed(&mut self) -> Option<AllowedTokens<'_>> {
        self.prepare();
        self.allowed.as_ref().map(AllowedTokens)
    }

    /// Tokens that end a part of JSON, in the order in which a generator without a model should try them: a quote first,
    /// because in a string a bracket is one more character.
    pub fn closing_tokens(&self) -> Arc<[u32]> {
        self.closing.clone()
    }

    /// The sequence has generated this token.
    pub fn push(&mut self, token: u32) {
        self.allowed = None;
        // A token that may not follow leaves the matcher with an error, so that no further token is allowed.
        let _ = self.matcher.consume_token(token);
    }

    /// Whether nothing can follow.
    pub fn is_complete(&self) -> bool {
        !self.matcher.is_error() && self.matcher.is_stopped()
    }

    /// Whether the answer may end here.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(false)
    }
}

impl Clone for Grammar {
    /// A grammar of its own: neither waits for the other's computations.
    fn clone(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            allowed: self.allowed.clone(),
            closing: self.closing.clone(),
        }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar")
            .field("stop", &self.matcher.stop_reason())
            .finish_non_exhaustive()
    }
}

/// A set of tokens.
#[derive(Debug, Clone, Copy)]
pub struct AllowedTokens<'a>(&'a SimpleVob);

impl AllowedTokens<'_> {
    /// Whether the token is in the set.
    pub fn contains(self, token: u32) -> bool {
        // A model's logits may be padded beyond the vocabulary.
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }
}

/// Compiles the grammars of one model.
pub struct GrammarCompiler {
    factory: Result<ParserFactory, String>,
    closing: Arc<[u32]>,
    /// The last ones, latest last.
    kept: Mutex<Vec<(ConstraintKind, Grammar)>>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// The compiler for the model with this vocabulary, which the engines of a process share. Making one takes some tenths of
    /// a second.
    pub fn of(text: &Arc<ModelText>) -> Arc<Self> {
        static COMPILERS: Mutex<Vec<(Weak<ModelText>, Arc<GrammarCompiler>)>> = Mutex::new(Vec::new());
        let mut compilers = COMPILERS.lock();
        compilers.retain(|(text, _)| text.strong_count() > 0);
        let is_same = |(of, _): &&(Weak<ModelText>, Arc<Self>)| of.as_ptr() == Arc::as_ptr(text);
        if let Some((_, compiler)) = compilers.iter().find(is_same) {
            return compiler.clone();
        }
        let compiler = Arc::new(Self {
            closing: closing_tokens(text),
            factory: factory(text).map_err(|error| error.to_string()),
            kept: Mutex::new(Vec::new()),
        });
        compilers.push((Arc::downgrade(text), compiler.clone()));
        compiler
    }

    /// The grammar of a new sequence.
    ///
    /// # Errors
    /// The constraint is invalid, too large or too complex. The error names the client's member.
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar, WireError> {
        let mut kept = self.kept.lock();
        if let Some(place) = kept.iter().position(|(kind, _)| *kind == constraint.kind) {
            let entry = kept.remove(place);
            let grammar = entry.1.clone();
            kept.push(entry);
            return Ok(grammar);
        }
        drop(kept);
        let refused = |reason: &str| {
            let message = format!("{} cannot be used: {}", constraint.param, shortened(reason));
            WireError::invalid_param(&*constraint.param, message)
        };
        let factory = self.factory.as_ref().map_err(|reason| refused(reason))?;
        let source = top_level_grammar(&constraint.kind).map_err(|reason| refused(&reason))?;
        // The library promises not to panic, and has panicked.
        let parser = catch_unwind(AssertUnwindSafe(|| factory.create_parser(source)))
            .map_err(|_| refused("the grammar is too complex"))?
            .map_err(|error| refused(&format!("{error:#}")))?;
        let mut matcher = Matcher::new(Ok(parser));
        // The first tokens need most of the states, so this finds a grammar that is too complex, and saves later work.
        let allowed = matcher
            .compute_mask_or_eos()
            .map_err(|error| refused(&error.to_string()))?;
        let grammar = Grammar {
            matcher,
            allowed: Some(allowed),
            closing: self.closing.clone(),
        };
        let mut kept = self.kept.lock();
        if kept.len() == MAX_KEPT {
            kept.remove(0);
        }
        kept.push((constraint.kind.clone(), grammar.clone()));
        Ok(grammar)
    }
}

fn closing_tokens(text: &ModelText) -> Arc<[u32]> {
    let closing: [&[u8]; 7] = [b"\"", b"}", b"]", b",", b", ", b":", b": "];
    closing
        .into_iter()
        .filter_map(|bytes| (0..text.vocab_size()).find(|token| text.piece(*token) == bytes))
        .collect()
}

fn factory(text: &ModelText) -> Result<ParserFactory, Box<dyn std::error::Error>> {
    let [eos, ..] = text.eos_tokens() else {
        return Err("the model has no token that ends an answer".into());
    };
    let info = TokRxInfo::new(text.vocab_size(), *eos);
    let words: Vec<Vec<u8>> = (0..text.vocab_size())
        .map(|token| {
            let bytes = text.piece(token);
            if text.is_special(token) {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
            } else {
                bytes.to_vec()
            }
        })
        .collect();
    let trie = TokTrie::from(&info, &words).with_eos_tokens(text.eos_tokens());
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
    *factory.quiet().limits_mut() = ParserLimits {
        // A state takes 1 to 2 KB: 40 MB for a sequence at most.
        max_lexer_states: 20_000,
        // FHIR's schema, one of the largest, has 200,000 symbols.
        max_grammar_size: 250_000,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

fn top_level_grammar(kind: &ConstraintKind) -> Result<TopLevelGrammar, String> {
    let bounded = |text: &str| {
        let bytes = text.len();
        if bytes > MAX_GRAMMAR_BYTES {
            return Err(format!("it has {bytes} bytes; give at most {MAX_GRAMMAR_BYTES}"));
        }
        Ok(())
    };
    match kind {
        ConstraintKind::JsonObject => Ok(json_grammar(json!({"type": "object"}))),
        ConstraintKind::JsonSchema(schema) => {
            bounded(schema)?;
            let schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
            Ok(json_grammar(schema))
        }
        ConstraintKind::Regex(regex) => {
            bounded(regex)?;
            check_nesting(regex)?;
            Ok(TopLevelGrammar::from_regex(regex))
        }
        ConstraintKind::Choice(texts) => {
            bounded(&texts.concat())?;
            let texts: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
            Ok(TopLevelGrammar::from_lark(format!(
                "start: {}",
                texts.join(" | ")
            )))
        }
        ConstraintKind::Grammar(grammar) => {
            bounded(grammar)?;
            check_nesting(grammar)?;
            if grammar.contains("::=") {
                return Err(
                    "it is in EBNF; give it in Lark's syntax, with `:` behind the name of a rule".into(),
                );
            }
            Ok(TopLevelGrammar::from_lark(grammar.clone()))
        }
    }
}

/// The grammar of a schema's values, written as Python's `json.dumps` does. With free whitespace between the parts a small
/// model may write nothing but that.
fn json_grammar(mut schema: Value) -> TopLevelGrammar {
    if let Some(members) = schema.as_object_mut() {
        let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        members.insert("x-guidance".into(), style);
    }
    TopLevelGrammar::from_json_schema(schema)
}

fn check_nesting(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err(format!("its brackets are nested more than {MAX_NESTING} deep"));
        }
    }
    Ok(())
}

/// The library's errors have several lines, and may repeat the grammar.
fn shortened(reason: &str) -> String {
    const MOST: usize = 300;
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job`, which compiles a grammar, on the thread for that.
///
/// # Errors
/// As many jobs wait as may.
pub(crate) fn compile_later(job: Job) -> Result<(), WireError> {
    static JOBS: OnceLock<Option<SyncSender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, jobs) = sync_channel::<Job>(MAX_WAITING);
        let work = move || {
            for job in jobs {
                // A job that panics drops its request, which fails it.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        };
        let thread = thread::Builder::new()
            .name("grammars".into())
            .stack_size(STACK_BYTES);
        thread.spawn(work).ok().map(|_| sender)
    });
    let Some(jobs) = jobs else {
        let message = "the thread that compiles grammars cannot be started";
        return Err(WireError::new(ErrorKind::Internal, message));
    };
    jobs.try_send(job).map_err(|_| {
        let message = "as many requests wait for their grammars to be compiled as may; try again later";
        WireError::new(ErrorKind::Overloaded, message)
    })
}

#[cfg(test)]
mod tests {
    use signalbox_tokenize::ModelArtifacts;

    use super::*;

    fn constraint(kind: ConstraintKind) -> Constraint {
        Constraint {
            param: "response_format".into(),
            kind,
        }
    }

    fn text() -> Arc<ModelText> {
        static TEXT: OnceLock<Arc<ModelText>> = OnceLock::new();
        TEXT.get_or_init(|| Arc::new(ModelText::load(&ModelArtifacts::byte_level()).unwrap()))
            .clone()
    }

    fn compile(kind: ConstraintKind) -> Result<Grammar, WireError> {
        GrammarCompiler::of(&text()).compile(&constraint(kind))
    }

    /// Whether the grammar allows exactly this answer: each token, and then its end.
    fn allows(kind: ConstraintKind, answer: &str) -> bool {
        let text = text();
        let mut grammar = compile(kind).unwrap();
        for token in text.encode_prompt_with(answer, false).unwrap() {
            if !grammar.allowed().is_some_and(|allowed| allowed.contains(token)) {
                return false;
            }
            grammar.push(token);
        }
        let may_end = grammar.may_end();
        let eos = text.eos_tokens()[0];
        assert_eq!(
            may_end,
            grammar.allowed().is_some_and(|allowed| allowed.contains(eos))
        );
        may_end
    }

    #[test]
    fn an_answer_obeys_its_grammar_and_ends_with_it() {
        let schema = r#"{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["x","y"]}},"required":["a","b"],
            "additionalProperties":false}"#;
        let schema = || ConstraintKind::JsonSchema(schema.into());
        assert!(allows(schema(), r#"{"a": -12, "b": "x"}"#));
        for wrong in [
            r#"{"a": 1"#,
            r#"{"a": 1}"#,
            r#"{"a": "1", "b": "x"}"#,
            "{ \"a\"",
            r#"{"a": 1, "b": "z"}"#,
            "a",
        ] {
            assert!(!allows(schema(), wrong), "{wrong}");
        }
        assert!(allows(ConstraintKind::JsonObject, r#"{"é": [1.5, {"b": null}]}"#));
        assert!(!allows(ConstraintKind::JsonObject, "[1]"));
        assert!(allows(ConstraintKind::Regex("[a-c]{2}-[0-9]+".into()), "ab-07"));
        assert!(!allows(ConstraintKind::Regex("[a-c]{2}-[0-9]+".into()), "abc-07"));
        let choice = || ConstraintKind::Choice(vec!["yes \"so\"".into(), "no".into()]);
        assert!(allows(choice(), "yes \"so\"") && allows(choice(), "no") && !allows(choice(), "n"));
        let lark = "start: greeting name\ngreeting: \"hi \" | \"ho \"\nname: /[A-Z][a-z]*/";
        assert!(allows(ConstraintKind::Grammar(lark.into()), "ho Anna"));
        assert!(!allows(ConstraintKind::Grammar(lark.into()), "Anna"));
    }

    #[test]
    fn a_grammar_is_complete_where_nothing_can_follow() {
        let text = text();
        let mut grammar = compile(ConstraintKind::Choice(vec!["no".into()])).unwrap();
        for token in text.encode_prompt_with("no", false).unwrap() {
            assert!(!grammar.is_complete());
            grammar.push(token);
        }
        assert!(grammar.is_complete());
    }

    #[test]
    fn a_token_that_may_not_follow_ends_all_hope() {
        let mut grammar = compile(ConstraintKind::JsonObject).unwrap();
        grammar.push(text().encode_prompt_with("x", false).unwrap()[0]);
        assert!(grammar.allowed().is_none() && !grammar.is_complete() && !grammar.may_end());
    }

    #[test]
    fn what_cannot_be_compiled_is_refused_with_the_reason() {
        let nested = "(".repeat(100_000);
        for (kind, part) in [
            (ConstraintKind::JsonSchema("{".into()), "EOF"),
            (ConstraintKind::JsonSchema(r#"{"type":"strin"}"#.into()), "strin"),
            (
                ConstraintKind::JsonSchema(r##"{"$ref":"#/$defs/none"}"##.into()),
                "none",
            ),
            (
                ConstraintKind::JsonSchema(format!("{{\"x\":\"{nested}\"}}")),
                "65536",
            ),
            (ConstraintKind::Regex("a(".into()), ""),
            (ConstraintKind::Regex("(".repeat(1_000)), "nested"),
            (ConstraintKind::Grammar("root ::= \"a\"".into()), "EBNF"),
            (ConstraintKind::Grammar("start: missing".into()), "missing"),
            (ConstraintKind::Choice(vec![nested.clone()]), "65536"),
        ] {
            let Err(error) = compile(kind.clone()) else {
                panic!("{kind:?} is compiled")
            };
            assert_eq!(error.param.as_deref(), Some("response_format"));
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
            assert!(
                error.message.contains(part) && error.message.len() < 500,
                "{kind:?}: {error}"
            );
        }
    }

    #[test]
    fn a_repeated_constraint_is_compiled_once() {
        let compiler = GrammarCompiler::of(&text());
        for round in 0..2 {
            for regex in 0..3 {
                compiler
                    .compile(&constraint(ConstraintKind::Regex(format!("kept{regex}"))))
                    .unwrap();
            }
            let kept = compiler.kept.lock();
            let of_this_test = |(kind, _): &&(ConstraintKind, Grammar)| matches!(kind, ConstraintKind::Regex(regex) if regex.starts_with("kept"));
            assert_eq!(kept.iter().filter(of_this_test).count(), 3, "round {round}");
            assert!(kept.len() <= MAX_KEPT);
        }
    }
}
