//! A model's tokenizer and chat template, loaded and ready.

use std::fmt;

use serde_json::Value as Json;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::artifacts::{ModelArtifacts, SpecialTokens};
use crate::encoder::Encoder;
use crate::messages::template_messages;
use crate::pieces::TokenPieces;
use crate::template::ChatTemplate;
use crate::{ArtifactError, TextError};

/// A loaded tokenizer and chat template, shared by threads.
///
/// Every method works on the calling thread, except that encoding splits long texts over a thread pool.
pub struct ModelText {
    encoder: Encoder,
    pieces: TokenPieces,
    template: Option<ChatTemplate>,
    special: SpecialTokens,
}

impl ModelText {
    /// Loads the tokenizer and compiles the template: about 0.1 s, once a model.
    ///
    /// Starts a thread that checks the fast tokenizer for a second or two. Encoding is several times faster once that
    /// tokenizer is in use.
    ///
    /// # Errors
    /// The tokenizer is invalid or of an unsupported kind, a special token is not in its vocabulary, or the template
    /// does not compile.
    pub fn load(artifacts: &ModelArtifacts) -> Result<Self, ArtifactError> {
        // By default the library hands even single texts to a thread pool. Requests run on many threads already.
        tokenizers::utils::parallelism::set_parallelism(false);
        let invalid = |error: tokenizers::Error| ArtifactError::Tokenizer(error.to_string());
        let mut tokenizer = Tokenizer::from_bytes(artifacts.tokenizer_json()).map_err(invalid)?;
        // Some files carry the truncation and padding of a training run; prompts are never truncated or padded.
        // `SpecialTokens` has the tokens around a prompt, and nothing here uses the offsets of a post-processor.
        tokenizer
            .with_truncation(None)
            .map_err(invalid)?
            .with_padding(None);
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let pieces = TokenPieces::of(&tokenizer)?;
        let special = artifacts.special_tokens().clone();
        let named = [&special.bos, &special.eos, &special.pad, &special.unk]
            .into_iter()
            .flatten();
        let ids = named.map(|token| token.id).chain(special.end.iter().copied());
        if let Some(id) = ids.into_iter().find(|id| *id >= pieces.len()) {
            let reason = format!(
                "special token {id} is outside the vocabulary of {} tokens",
                pieces.len()
            );
            return Err(ArtifactError::Tokenizer(reason));
        }
        let template = artifacts
            .chat_template()
            .map(|source| ChatTemplate::compile(source, &special))
            .transpose()?;
        Ok(Self {
            encoder: Encoder::new(tokenizer, artifacts.tokenizer_json().clone()),
            pieces,
            template,
            special,
        })
    }

    /// Renders OpenAI's `messages` into the prompt's text, up to the beginning of the assistant's answer. The content
    /// of a message is a string or an array of parts of type `text`.
    ///
    /// # Errors
    /// The model has no template, a message has the wrong shape (the error names the parameter), or the template
    /// refuses the messages.
    pub fn render_chat(&self, messages: &Json) -> Result<String, TextError> {
        self.render_chat_with(messages, &Json::Null)
    }

    /// As [`Self::render_chat`], with more variables for the template: the members of `extra`, an object or null.
    /// Examples are a request's `tools` and vLLM's `chat_template_kwargs` (`{"enable_thinking": false}`).
    ///
    /// # Errors
    /// As [`Self::render_chat`], or `extra` is neither an object nor null.
    pub fn render_chat_with(&self, messages: &Json, extra: &Json) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let messages = template_messages(messages, !template.has_developer_role())?;
        template.render(messages, extra)
    }

    /// The tokens of [`Self::render_chat`].
    ///
    /// The template writes special tokens as text, and encoding recognises them. Encoding also recognises a special
    /// token that a message contains, as `transformers` and vLLM do. A service that must not let users write turns of
    /// their own has to filter the messages first.
    ///
    /// # Errors
    /// As [`Self::render_chat`].
    pub fn encode_chat(&self, messages: &Json) -> Result<Vec<u32>, TextError> {
        self.encode_chat_with(messages, &Json::Null)
    }

    /// The tokens of [`Self::render_chat_with`].
    ///
    /// # Errors
    /// As [`Self::render_chat_with`].
    pub fn encode_chat_with(&self, messages: &Json, extra: &Json) -> Result<Vec<u32>, TextError> {
        self.encoder.encode(&self.render_chat_with(messages, extra)?)
    }

    /// The tokens of a prompt without a chat template, with the beginning-of-sequence token if the model uses one.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text and no token for unknown text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let SpecialTokens {
            bos,
            eos,
            add_bos,
            add_eos,
            ..
        } = &self.special;
        let before = bos.as_ref().filter(|_| *add_bos).map(|token| token.id);
        let behind = eos.as_ref().filter(|_| *add_eos).map(|token| token.id);
        let tokens = self.encoder.encode(text)?;
        if before.is_none() && behind.is_none() {
            return Ok(tokens);
        }
        Ok(before.into_iter().chain(tokens).chain(behind).collect())
    }

    /// Waits until the fast tokenizer has been checked, and returns whether it is used. [`Self::load`] does not wait
    /// for the check. For benches and tests: the tokens are the same before and after.
    #[doc(hidden)]
    pub fn wait_until_encoder_chosen(&self) -> bool {
        self.encoder.wait_until_checked()
    }

    /// Tokens that end a generation, ascending.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.special.end
    }

    /// The model's special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The largest token id plus one. A model's logits may be padded beyond it.
    pub fn vocab_size(&self) -> u32 {
        self.pieces.len()
    }

    /// The exact bytes of one token, for logprobs. Empty for an id outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.piece(token).to_vec()
    }

    /// As [`Self::token_bytes`], borrowed.
    pub fn piece(&self, token: u32) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// Whether the token is special: a control token of the model, which decoding leaves out.
    pub fn is_special(&self, token: u32) -> bool {
        self.pieces.is_special(token)
    }
}

impl fmt::Debug for ModelText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelText")
            .field("vocab_size", &self.vocab_size())
            .field("has_chat_template", &self.has_chat_template())
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
