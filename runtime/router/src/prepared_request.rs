//! A request under way, with what its workers get: for each form of prompt that workers of its model read, the request made
//! ready for it, and the prompt's KV blocks in each size that these workers have.

use signalbox_protocol::{SequenceHash, name_hash};

use crate::{
    context_need::ContextNeed,
    retries::PromptId,
    roster::{ModelEntry, ModelVersion, PromptForm, VersionId},
    route_request::RouteRequest,
    versioned_prompt::VersionedPrompt,
};

/// A request, made ready for each form.
#[derive(Debug)]
pub(crate) struct PreparedRequest {
    first: FormedRequest,
    /// Usually none.
    others: Vec<FormedRequest>,
}

/// A request, made ready for one form.
#[derive(Debug)]
pub(crate) struct FormedRequest {
    pub(crate) request: RouteRequest,
    hashed: HashedBlocks,
    /// Other block sizes that workers of this form have. Usually none.
    others: Vec<HashedBlocks>,
}

/// A prompt's KV blocks in one size.
#[derive(Debug, Default)]
struct HashedBlocks {
    /// Tokens per block; 0 before the prompt is hashed.
    block_size: u32,
    blocks: Vec<SequenceHash>,
}

impl PreparedRequest {
    pub(crate) fn new(mut request: RouteRequest) -> Self {
        let others = std::mem::take(&mut request.other_forms);
        Self {
            first: FormedRequest::new(request),
            others: others.into_iter().map(FormedRequest::new).collect(),
        }
    }

    /// The request as the client sent it, whatever its form.
    pub(crate) fn any(&self) -> &RouteRequest {
        &self.first.request
    }

    /// What the request asks. Equal for its first attempt and for the rest of its answer.
    pub(crate) fn prompt_id(&self) -> PromptId {
        let FormedRequest { request, hashed, .. } = &self.first;
        let delivered = request.generate.continuation.as_ref();
        let delivered = delivered.map_or(0, |delivered| delivered.delivered_tokens as usize);
        let tokens = &request.tokens[..request.tokens.len().saturating_sub(delivered)];
        let model = name_hash(&request.generate.model);
        if tokens.is_empty() || request.unhashed_tokens > 0 {
            let body = std::str::from_utf8(&request.body).unwrap_or_default();
            return PromptId(model ^ name_hash(body));
        }
        let size = hashed.block_size.max(1) as usize;
        let whole = (tokens.len() / size).min(hashed.blocks.len());
        let prefix = whole.checked_sub(1).map_or(0, |last| hashed.blocks[last].0);
        // The prime of FNV-1a, over the few tokens behind the last whole block.
        let mix = |id: u64, token: &u32| (id ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3);
        PromptId(tokens[whole * size..].iter().fold(model ^ prefix, mix))
    }

    /// The request in this form.
    pub(crate) fn in_form(&mut self, form: PromptForm) -> Option<&mut FormedRequest> {
        self.formed_mut().find(|formed| formed.request.form == form)
    }

    /// The request in this form alone.
    pub(crate) fn into_form(self, form: PromptForm) -> Option<RouteRequest> {
        let mut formed = std::iter::once(self.first).chain(self.others);
        let formed = formed.find(|formed| formed.request.form == form)?;
        Some(formed.request)
    }

    /// Hashes the prompt for every version of the model that it is not hashed for yet.
    pub(crate) fn hash_for(&mut self, model: &ModelEntry) {
        for version in &model.versions {
            if let Some(formed) = self.in_form(version.id.form) {
                formed.hash_for(model, version.id.block_size);
            }
        }
    }

    /// The prompt for workers of this version. Contexts up to `too_short` tokens have proved too short for it. `None` if the
    /// request was not made ready for the version.
    pub(crate) fn prompt(&self, version: &ModelVersion, too_short: u32) -> Option<VersionedPrompt<'_>> {
        let mut formed = std::iter::once(&self.first).chain(&self.others);
        let formed = formed.find(|formed| formed.request.form == version.id.form)?;
        let request = &formed.request;
        let known = u32::try_from(request.tokens.len()).unwrap_or(u32::MAX);
        Some(VersionedPrompt {
            version: version.id,
            tokens: known.saturating_add(request.unhashed_tokens),
            blocks: formed.blocks(version.id),
            context: ContextNeed::of(request, version.reads_body, too_short),
        })
    }

    fn formed_mut(&mut self) -> impl Iterator<Item = &mut FormedRequest> {
        std::iter::once(&mut self.first).chain(&mut self.others)
    }
}

impl FormedRequest {
    fn new(request: RouteRequest) -> Self {
        Self {
            request,
            hashed: HashedBlocks::default(),
            others: Vec::new(),
        }
    }

    /// The prompt's blocks for workers of this version; none if it was not hashed for them.
    pub(crate) fn blocks(&self, version: VersionId) -> &[SequenceHash] {
        let mut hashed = std::iter::once(&self.hashed).chain(&self.others);
        let hashed = hashed.find(|hashed| hashed.block_size == version.block_size);
        hashed.map_or(&[], |hashed| &hashed.blocks)
    }

    fn hash_for(&mut self, model: &ModelEntry, block_size: u32) {
        let mut hashed = std::iter::once(&self.hashed).chain(&self.others);
        if hashed.any(|hashed| hashed.block_size == block_size) {
            return;
        }
        let generate = &self.request.generate;
        let hasher = model.hasher(block_size, &generate.lora, &generate.cache_salt);
        let hashed = HashedBlocks {
            block_size,
            blocks: hasher.hash(&self.request.tokens),
        };
        if self.hashed.block_size == 0 {
            self.hashed = hashed;
        } else {
            self.others.push(hashed);
        }
    }
}

#[cfg(test)]
mod tests;
