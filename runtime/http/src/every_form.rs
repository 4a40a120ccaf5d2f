//! Makes a request ready for every form of prompt that workers of its model read.
//!
//! Usually there is one form. While a rolling update changes the tokenizer, the chat template or the kind of engine, there
//! are several, and a request may go to a worker of any of them: its body is read once for each.

use bytes::Bytes;
use signalbox_protocol::{Endpoint, RequestId, WireError};
use signalbox_router::{ModelView, PromptForm, RouteRequest};

use crate::{
    checked, forwarded,
    openai::{CHAT_NAMES, COMPLETION_NAMES, Fields, take_model},
    prepared::Prepared,
    responses_chat, tokenizer_calls,
};

/// A prompt of a request, made ready for at least one form.
#[derive(Debug, Clone)]
pub(crate) struct EveryForm {
    endpoint: Endpoint,
    lora: String,
    forms: Vec<(PromptForm, Prepared)>,
}

impl EveryForm {
    /// Reads the body for each form of the model: one request for each prompt that is routed by itself. `fields` are those of
    /// the body, without the model's `name`.
    ///
    /// Several prompts go to engines of this repository one by one, and to an engine that reads bodies all at once. While a
    /// model has workers of both kinds, they go to the kind that most workers are of.
    ///
    /// # Errors
    /// The request is refused in every form. The error is that of the form that most workers read.
    pub(crate) fn read(
        endpoint: Endpoint,
        name: &str,
        mut fields: Fields,
        model: &ModelView,
        body: &Bytes,
    ) -> Result<Vec<Self>, WireError> {
        let first = prepare(endpoint, name, &mut fields, model, body);
        let forms = if model.other_forms.is_empty() {
            vec![(model.form, first?)]
        } else {
            let others = model.other_forms.iter().map(|other| {
                let mut fields = parse(endpoint, body)?;
                take_model(&mut fields)?;
                Ok((other.form, prepare(endpoint, name, &mut fields, other, body)?))
            });
            ready_forms(std::iter::once(first.map(|first| (model.form, first))).chain(others))?
        };
        let forms = alike(forms);
        let lora = model.adapter.as_ref().map(|_| model.name.clone());
        let lora = lora.unwrap_or_default();
        Ok(by_prompt(forms)
            .into_iter()
            .map(|forms| Self {
                endpoint,
                lora: lora.clone(),
                forms,
            })
            .collect())
    }

    /// The request in the form that most workers read, among those that do not refuse it.
    pub(crate) fn first(&self) -> Option<&Prepared> {
        self.forms.first().map(|(_, prepared)| prepared)
    }

    /// The forms that the request was made ready for.
    pub(crate) fn forms(&self) -> Vec<PromptForm> {
        self.forms.iter().map(|(form, _)| *form).collect()
    }

    /// The request for the router. `deadline_ms` counts from now on; `created` is the answer's date.
    pub(crate) fn into_route_request(
        self,
        body: &Bytes,
        id: &RequestId,
        deadline_ms: u64,
        created: u64,
    ) -> Option<RouteRequest> {
        let (endpoint, lora) = (self.endpoint, self.lora);
        let mut requests = self.forms.into_iter().map(|(form, prepared)| {
            let (lora, body) = (lora.clone(), body.clone());
            let mut request =
                prepared.into_route_request(form, endpoint, lora, body, id.clone(), deadline_ms);
            request.generate.format.created = created;
            request
        });
        let mut first = requests.next()?;
        first.other_forms = requests.collect();
        Some(first)
    }
}

/// The forms whose answers become the client's in the same way as that of the first: as they are, or from a chat to a response.
fn alike(mut forms: Vec<(PromptForm, Vec<Prepared>)>) -> Vec<(PromptForm, Vec<Prepared>)> {
    let converts = |prompts: &[Prepared]| prompts.iter().any(|prompt| prompt.response.is_some());
    let first = forms.first().is_some_and(|(_, prompts)| converts(prompts));
    forms.retain(|(_, prompts)| converts(prompts) == first);
    forms
}

/// The forms in which the request is not refused; the first refusal if there is none.
fn ready_forms<T>(forms: impl Iterator<Item = Result<T, WireError>>) -> Result<Vec<T>, WireError> {
    let (mut ready, mut refusal) = (Vec::new(), None);
    for form in forms {
        match form {
            Ok(form) => ready.push(form),
            Err(error) => _ = refusal.get_or_insert(error),
        }
    }
    match refusal {
        Some(refusal) if ready.is_empty() => Err(refusal),
        _ => Ok(ready),
    }
}

/// The forms of each prompt, from the prompts of each form. A form that the request has another number of prompts in than
/// in the first one is left out.
fn by_prompt<F: Copy, T>(forms: Vec<(F, Vec<T>)>) -> Vec<Vec<(F, T)>> {
    let count = forms.first().map_or(0, |(_, prompts)| prompts.len());
    let mut prompts: Vec<Vec<(F, T)>> = (0..count).map(|_| Vec::with_capacity(1)).collect();
    for (form, of_form) in forms.into_iter().filter(|(_, of_form)| of_form.len() == count) {
        for (prompt, prepared) in prompts.iter_mut().zip(of_form) {
            prompt.push((form, prepared));
        }
    }
    prompts
}

/// Reads a body strictly if the model's workers run an engine of this repository, and only as far as routing needs if the
/// engines read bodies themselves.
fn prepare(
    endpoint: Endpoint,
    name: &str,
    fields: &mut Fields,
    model: &ModelView,
    body: &Bytes,
) -> Result<Vec<Prepared>, WireError> {
    if model.reads_body {
        let prepared = forwarded::prepare(endpoint, name.to_owned(), fields, model, body.len());
        Ok(vec![prepared])
    } else {
        checked::prepare(endpoint, name.to_owned(), fields, model)
    }
}

/// Reads the parameters that either way of reading a body needs, as one pass over the body.
pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Fields, WireError> {
    let [common, prompt] = forwarded::names(endpoint);
    match endpoint {
        Endpoint::Chat => {
            let [a, b, c] = CHAT_NAMES;
            Fields::parse(body, &[a, b, c, common, prompt])
        }
        Endpoint::Completions => {
            let [a, b, c] = COMPLETION_NAMES;
            Fields::parse(body, &[a, b, c, common, prompt])
        }
        Endpoint::Tokenize | Endpoint::Detokenize => {
            Fields::parse(body, &[common, prompt, &tokenizer_calls::NAMES])
        }
        Endpoint::Responses => {
            let [a, b] = responses_chat::NAMES;
            Fields::parse(body, &[a, b, common, prompt])
        }
        _ => Fields::parse(body, &[common, prompt]),
    }
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::ErrorKind;

    use super::*;

    #[test]
    fn prompts_go_to_the_forms_that_have_as_many_as_the_first() {
        let forms = vec![('a', vec![1, 2]), ('b', vec![3]), ('c', vec![4, 5])];
        assert_eq!(by_prompt(forms), [[('a', 1), ('c', 4)], [('a', 2), ('c', 5)]]);
        let forms = vec![('b', vec![3]), ('a', vec![1, 2])];
        assert_eq!(by_prompt(forms), [[('b', 3)]]);
    }

    #[test]
    fn a_request_is_refused_only_if_every_form_refuses_it() {
        let refused = |message: &str| Err(WireError::new(ErrorKind::InvalidRequest, message));
        assert_eq!(
            ready_forms([Ok(1), refused("a"), Ok(2)].into_iter()),
            Ok(vec![1, 2])
        );
        assert_eq!(ready_forms([refused("a"), Ok(2)].into_iter()), Ok(vec![2]));
        let error = ready_forms::<i32>([refused("a"), refused("b")].into_iter()).unwrap_err();
        assert_eq!(error.message, "a");
    }
}
