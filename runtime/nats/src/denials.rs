//! What the server does not permit this process to do. Pure.
//!
//! A server that denies a subject answers nothing on it: without this, a missing permission looks like a server that
//! does not answer.

/// Most denials that are kept. A process uses some 30 kinds of subjects; a few inboxes come and go.
const MAX_DENIALS: usize = 64;

/// Where all answers arrive.
const ALL_INBOXES: &str = "_INBOX.>";

/// The subjects that the server has denied since the connection was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denials {
    /// Each with the number of its last repetition.
    denied: Vec<(Denial, u64)>,
    /// The number of denials, repetitions included.
    count: u64,
}

/// One subject that the server has denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Whether the process wanted to subscribe; otherwise it wanted to publish.
    pub is_subscription: bool,
    /// The subject.
    pub subject: String,
}

impl Denials {
    /// The first denial of a subject that `concerns` returns true for.
    pub fn find(&self, concerns: impl Fn(&Denial) -> bool) -> Option<&Denial> {
        self.find_since(0, concerns)
    }

    /// The first such denial that counts now: of publishing, after the first `count` denials, because the server repeats
    /// it at each attempt and an operator may have lifted it; of a subscription, since the connection was made, because
    /// the client subscribes once.
    pub(crate) fn find_since(&self, count: u64, concerns: impl Fn(&Denial) -> bool) -> Option<&Denial> {
        let found = self
            .denied
            .iter()
            .find(|(denial, number)| (denial.is_subscription || *number > count) && concerns(denial));
        found.map(|(denial, _)| denial)
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Notes an error of the server. Returns whether it is worth a line in the log: an error of another kind, or a
    /// denial that is new.
    pub(crate) fn note(&mut self, error: &str) -> bool {
        let Some(denial) = Denial::parse(error) else {
            return true;
        };
        self.count += 1;
        let count = self.count;
        if let Some((_, number)) = self.denied.iter_mut().find(|(known, _)| *known == denial) {
            *number = count;
            return false;
        }
        let has_room = self.denied.len() < MAX_DENIALS;
        if has_room {
            self.denied.push((denial, count));
        }
        has_room
    }

    /// Forgets all denials: on a new connection the permissions may be others.
    pub(crate) fn clear(&mut self) {
        self.denied.clear();
    }
}

impl Denial {
    /// Whether it takes away every answer to a request, or the messages of a JetStream consumer.
    pub fn is_of_answers(&self) -> bool {
        self.is_subscription && self.subject == ALL_INBOXES
    }

    /// Whether it takes away a request of JetStream about this stream, such as `STREAM.INFO`, or all answers.
    pub fn concerns_request(&self, operation: &str, stream: &str) -> bool {
        let is_request = || {
            let request = self.subject.strip_prefix("$JS.API.")?;
            let about = request.strip_prefix(operation)?;
            about.split('.').any(|token| token == stream).then_some(())
        };
        self.is_of_answers() || (!self.is_subscription && is_request().is_some())
    }

    /// From `Permissions Violation for Publish to "…"` or `… for Subscription to "…"`, the server's words. The names of
    /// inboxes end at their prefix, because each request has its own.
    fn parse(error: &str) -> Option<Self> {
        let lower = error.to_lowercase();
        let start = lower.find("permissions violation for ")?;
        let operation = &lower[start + "permissions violation for ".len()..];
        let is_subscription = operation.starts_with("subscription");
        let mut quoted = error.split('"');
        let subject = quoted.nth(1)?;
        let subject = match subject.split_once("_INBOX.") {
            Some(("", _)) => ALL_INBOXES,
            _ => subject,
        };
        Some(Self {
            is_subscription,
            subject: subject.to_owned(),
        })
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operation = match self.is_subscription {
            true => "subscribe",
            false => "publish",
        };
        write!(
            f,
            "the NATS server does not permit this process to {operation} to {}",
            self.subject
        )
    }
}

impl std::error::Error for Denial {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_server_are_read() {
        let mut denials = Denials::default();
        assert!(denials.note(r#"nats: Permissions Violation for Publish to "$JS.API.STREAM.INFO.X""#));
        assert!(!denials.note(r#"nats: Permissions Violation for Publish to "$JS.API.STREAM.INFO.X""#));
        assert!(denials.note(r#"nats: Permissions Violation for Subscription to "_INBOX.abc.*""#));
        assert!(!denials.note(r#"nats: permissions violation for subscription to "_INBOX.def""#));
        let publish = denials.find(|denial| !denial.is_subscription).unwrap();
        assert_eq!(publish.subject, "$JS.API.STREAM.INFO.X");
        let subscription = denials.find(|denial| denial.is_subscription).unwrap();
        assert_eq!(
            subscription.to_string(),
            "the NATS server does not permit this process to subscribe to _INBOX.>"
        );
        denials.clear();
        assert_eq!(denials.find(|_| true), None);
    }

    #[test]
    fn a_denial_of_publishing_counts_at_each_attempt_and_one_of_a_subscription_for_good() {
        let mut denials = Denials::default();
        denials.note(r#"nats: Permissions Violation for Publish to "a""#);
        denials.note(r#"nats: Permissions Violation for Subscription to "b""#);
        let count = denials.count();
        let found = |denials: &Denials| {
            denials
                .find_since(count, |_| true)
                .map(|denial| denial.subject.clone())
        };
        assert_eq!(found(&denials).as_deref(), Some("b"));
        denials.note(r#"nats: Permissions Violation for Publish to "a""#);
        assert_eq!(found(&denials).as_deref(), Some("a"));
    }

    #[test]
    fn a_denial_concerns_its_request_and_a_denied_inbox_all_requests() {
        let publish = Denial {
            is_subscription: false,
            subject: "$JS.API.CONSUMER.MSG.NEXT.EVENTS.c1".into(),
        };
        assert!(publish.concerns_request("CONSUMER.MSG.NEXT", "EVENTS"));
        assert!(!publish.concerns_request("CONSUMER.MSG.NEXT", "EVENT"));
        assert!(!publish.concerns_request("STREAM.INFO", "EVENTS"));
        let inbox = Denial {
            is_subscription: true,
            subject: ALL_INBOXES.into(),
        };
        assert!(inbox.concerns_request("STREAM.INFO", "EVENTS"));
    }

    #[test]
    fn other_errors_are_no_denials_and_ever_new_subjects_stay_within_the_bound() {
        let mut denials = Denials::default();
        assert!(
            denials.note("nats: maximum payload exceeded") && denials.note("nats: maximum payload exceeded")
        );
        assert_eq!(denials.find(|_| true), None);
        for number in 0..1000 {
            denials.note(&format!(
                r#"nats: Permissions Violation for Publish to "s.{number}""#
            ));
        }
        assert_eq!(denials.denied.len(), MAX_DENIALS);
    }
}
