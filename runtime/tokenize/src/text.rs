//! A model's tokenizer and chat template, loaded and ready.

use std::fmt;

use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::artifacts::{ModelArtifacts, SpecialTokens};
use crate::chat::ChatPrompt;
use crate::encoder::Encoder;
use crate::least_tokens::LeastTokens;
use crate::pieces::TokenPieces;
use crate::renderer::ChatRenderer;
use crate::{ArtifactError, TextError};

/// A loaded tokenizer and chat template, shared by threads.
///
/// Every method works on the calling thread, except that encoding splits long texts over a thread pool.
pub struct ModelText {
    encoder: Encoder,
    pieces: TokenPieces,
    least: LeastTokens,
    renderer: ChatRenderer,
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
    /// does not compile and the model is served by an engine of this repository.
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
        Ok(Self {
            least: LeastTokens::of(&tokenizer, &pieces),
            encoder: Encoder::new(tokenizer, artifacts.tokenizer_json().clone()),
            pieces,
            renderer: ChatRenderer::load(artifacts)?,
            special,
        })
    }

    /// Renders a chat into the prompt's text, as the engine that serves the model does.
    ///
    /// # Errors
    /// The model has no template, a part of the chat has the wrong shape (the error names the parameter), the template
    /// refuses the messages, or only the engine can render them ([`TextError::Unrenderable`]).
    pub fn render_chat(&self, chat: &ChatPrompt<'_>) -> Result<String, TextError> {
        let rendered = self.renderer.render(chat)?;
        Ok(match rendered.prefix_of_answer {
            Some(prefix) => rendered.prompt + &prefix,
            None => rendered.prompt,
        })
    }

    /// The tokens of [`Self::render_chat`].
    ///
    /// The template writes special tokens as text, and encoding recognises them. Encoding also recognises a special
    /// token that a message contains, as `transformers` and vLLM do. A service that must not let users write turns of
    /// their own has to filter the messages first.
    ///
    /// # Errors
    /// As [`Self::render_chat`].
    pub fn encode_chat(&self, chat: &ChatPrompt<'_>) -> Result<Vec<u32>, TextError> {
        self.encode_chat_within(chat, usize::MAX)
    }

    /// As [`Self::encode_chat`], but a prompt that certainly has more than `most` tokens is not encoded. A prompt with a
    /// few more may be encoded all the same: the caller compares the number.
    ///
    /// # Errors
    /// As [`Self::render_chat`], or [`TextError::TooLong`].
    pub fn encode_chat_within(&self, chat: &ChatPrompt<'_>, most: usize) -> Result<Vec<u32>, TextError> {
        let rendered = self.renderer.render(chat)?;
        let mut tokens = self.encode_prompt_within(&rendered.prompt, chat.add_special_tokens, most)?;
        if let Some(prefix) = &rendered.prefix_of_answer {
            tokens.extend(self.encoder.encode(prefix)?);
        }
        Ok(tokens)
    }

    /// The tokens of a prompt without a chat template, with the beginning-of-sequence token if the model uses one.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text and no token for unknown text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_prompt_with(text, true)
    }

    /// As [`Self::encode_prompt`]; without `add_special_tokens` no token is added around the text.
    ///
    /// # Errors
    /// As [`Self::encode_prompt`].
    pub fn encode_prompt_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.encode_prompt_within(text, add_special_tokens, usize::MAX)
    }

    /// As [`Self::encode_prompt_with`], but a prompt that certainly has more than `most` tokens is not encoded.
    ///
    /// # Errors
    /// As [`Self::encode_prompt`], or [`TextError::TooLong`].
    pub fn encode_prompt_within(
        &self,
        text: &str,
        add_special_tokens: bool,
        most: usize,
    ) -> Result<Vec<u32>, TextError> {
        let least = self.least_tokens(text);
        if least > most {
            return Err(TextError::TooLong { least });
        }
        if !add_special_tokens {
            return self.encoder.encode(text);
        }
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

    /// The fewest tokens that a text of this length can have: 0 if the tokenizer has no such bound.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.least.in_text(text)
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
        self.renderer.has_template()
    }

    /// Whether the chat template describes a request's tools to the model.
    pub fn renders_tools(&self) -> bool {
        self.renderer.renders_tools()
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

    /// The token as the vocabulary writes it: `Ġworld` or `▁world` for ` world`, say. Empty for an id without a token.
    pub fn written_token(&self, token: u32) -> String {
        self.encoder.written(token).unwrap_or_default()
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
