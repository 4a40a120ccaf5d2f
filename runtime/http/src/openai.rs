//! OpenAI's requests: parsed, checked, and with OpenAI's defaults filled in.
//!
//! Only the parameters that routing and sampling need are read. Unknown parameters stay in the body, which goes to the
//! worker unchanged. Known parameters are checked strictly, since a wrong value that an engine finds late makes all
//! sequences of the engine fail. Every refusal names the parameter as the client wrote it, and what would be right.

mod chat;
mod completions;
mod context;
mod fields;
mod json;
mod refused;
mod sampling;

pub(crate) use chat::ChatRequest;
pub(crate) use completions::{CompletionRequest, Prompt};
pub(crate) use context::{DefaultLength, check_vocabulary, fit_context};
pub(crate) use sampling::{GenerationParams, model_of};

#[cfg(test)]
mod tests;
