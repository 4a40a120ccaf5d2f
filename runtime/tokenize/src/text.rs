//! A model's tokenizer and chat template, loaded and ready.

use std::fmt;

use serde_json::Value as Json;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::artifacts::{ModelArtifacts, SpecialTokens};
use crate::encoder::Encoder;
use crate::messages::template_messages;
use crate::pieces::TokenPieces;
use crate::template::ChatTemplate;
use crate::{ArtifactError, TextError, TokenDecoder};

/// A loaded tokenizer and chat template. Shared by threads; all methods take `&self`, and each works on the thread that
/// calls it, but for the encoding of long texts.
pub struct ModelText {
    encoder: Encoder,
    pieces: TokenPieces,
    template: Option<ChatTemplate>,
    special: SpecialTokens,
}

impl ModelText {
    /// Loads the tokenizer and compiles the template. Takes a tenth of a second or so; done once a model. A thread goes on
    /// for a second or two, after which encoding takes a small part of the time.
    ///
    /// # Errors
    /// The tokenizer is not sound or of an unsupported kind, a special token is not in its vocabulary, or the template
    /// does not compile.
    pub fn load(artifacts: &ModelArtifacts) -> Result<Self, ArtifactError> {
        // The library would hand even single texts to a pool of threads; callers here are threads enough.
        tokenizers::utils::parallelism::set_parallelism(false);
        let unsound = |error: tokenizers::Error| ArtifactError::Tokenizer(error.to_string());
        let mut tokenizer = Tokenizer::from_bytes(artifacts.tokenizer_json()).map_err(unsound)?;
        // Some files carry the settings of a training run; a prompt is never cut or filled up. What frames a prompt is
        // in `SpecialTokens`, and offsets, the rest of what a post-processor is for, are not asked for.
        tokenizer
            .with_truncation(None)
            .map_err(unsound)?
            .with_padding(None);
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let pieces = TokenPieces::of(&tokenizer)?;
        let special = artifacts.special_tokens().clone();
        let named = [&special.bos, &special.eos, &special.pad, &special.unk]
            .into_iter()
            .flatten();
        let ids = named.map(|token| token.id).chain(special.end.iter().copied());
        if let Some(id) = ids.into_iter().find(|id| *id >= pieces.len()) {
            let what = format!(
                "special token {id} is outside the vocabulary of {} tokens",
                pieces.len()
            );
            return Err(ArtifactError::Tokenizer(what));
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

    /// The prompt text for OpenAI's `messages` (content a string or parts of type text), up to where the assistant's
    /// answer begins.
    ///
    /// # Errors
    /// There is no template, the messages are not of the shape asked for (the error names the place), or the template
    /// refuses them.
    pub fn render_chat(&self, messages: &Json) -> Result<String, TextError> {
        self.render_chat_with(messages, &Json::Null)
    }

    /// As [`Self::render_chat`]; the members of `extra`, an object or null, become variables of the template: a
    /// request's `tools`, and what vLLM's clients send as `chat_template_kwargs` (`{"enable_thinking": false}`).
    ///
    /// # Errors
    /// As [`Self::render_chat`], and an `extra` of another kind.
    pub fn render_chat_with(&self, messages: &Json, extra: &Json) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let messages = template_messages(messages, !template.knows_developer())?;
        template.render(messages, extra)
    }

    /// The tokens of [`Self::render_chat`].
    ///
    /// The template writes special tokens as text, and they are recognised as such; so is what looks like one inside a
    /// message. That is how `transformers` and vLLM do it, and models are served the same here: whoever must not let
    /// users write turns of their own filters messages before.
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

    /// A bare prompt, with the beginning-of-sequence token where the model wants one.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text, nor one for the unknown.
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

    /// Tokens to text, special tokens left out: what a [`TokenDecoder`] gives in pieces. The tokens continue a text, so
    /// a space they begin with stays, also where the tokenizer itself puts one before a text's first word.
    ///
    /// # Errors
    /// A token is outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        if let Some(token) = tokens.iter().find(|token| **token >= self.pieces.len()) {
            let size = self.pieces.len();
            return Err(TextError::Encode(format!(
                "Token {token} does not exist; the model has {size} tokens."
            )));
        }
        let mut text = String::with_capacity(tokens.len() * 4);
        let mut decoder = TokenDecoder::default();
        for token in tokens {
            decoder.push(self, *token, &mut text);
        }
        decoder.finish(self, &mut text);
        Ok(text)
    }

    /// Waits until prompts are encoded the way they will be from now on, and says whether the fast tokenizer does it:
    /// [`Self::load`] does not wait until that one has been tried. For benches and tests; tokens are the same before.
    #[doc(hidden)]
    pub fn wait_until_encoder_chosen(&self) -> bool {
        self.encoder.wait_until_tried()
    }

    /// Tokens that end a generation, ascending.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.special.end
    }

    /// The model's special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Whether messages can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The largest token id and one. A model's logits may be padded past it.
    pub fn vocab_size(&self) -> u32 {
        self.pieces.len()
    }

    /// Exact bytes of one token, for logprobs; none for an id outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.piece(token).to_vec()
    }

    /// As [`Self::token_bytes`], borrowed.
    pub fn piece(&self, token: u32) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// Whether the token is no text but a mark of the model's: decoding leaves it out.
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
