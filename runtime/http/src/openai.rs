//! What clients ask for in OpenAI's terms, checked and with its defaults filled in.
//!
//! Only what routing and sampling need is read; a parameter unknown here stays in the body, which travels to the
//! worker untouched. What is known is checked strictly, since an engine that meets a wrong value late fails for all
//! its sequences. Every refusal names the parameter as the client spelled it and says what would be right.

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
