//! OpenAI's requests to the engines of this repository: parsed, checked, and with OpenAI's defaults filled in.
//!
//! Only the parameters that routing and sampling need are read. Unknown parameters stay in the body, which goes to the
//! worker unchanged. Known parameters are checked strictly, since a wrong value that an engine finds late makes all
//! sequences of the engine fail. Every refusal names the parameter as the client wrote it, and what would be right.
//! `forwarded` reads the requests to engines that check them themselves; it shares [`Fields`].

mod chat;
mod completions;
mod context;
mod fields;
mod json;
mod refused;
mod sampling;
mod tool_prompt;
mod tools;

pub(crate) use chat::{ChatRequest, Rendering, messages};
pub(crate) use completions::{CompletionRequest, Prompt, token_ids};
pub(crate) use context::{
    DefaultLength, check_least, check_stop_tokens, check_vocabulary, fit_context, prompt_too_long,
};
pub(crate) use fields::{Fields, integer, wrong};
pub(crate) use sampling::{GenerationParams, take_model, token_id, urgency};
pub(crate) use tool_prompt::with_tools;
pub(crate) use tools::described_tools;

/// The parameters of a chat that are checked.
pub(crate) const CHAT_NAMES: [&[&str]; 3] = [&sampling::NAMES, &chat::NAMES, &refused::NAMES];

/// The parameters of a plain completion that are checked.
pub(crate) const COMPLETION_NAMES: [&[&str]; 3] = [&sampling::NAMES, &completions::NAMES, &refused::NAMES];

#[cfg(test)]
mod tests;
