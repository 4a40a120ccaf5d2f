//! Answers as its setting `answer` says: every answer but costs and a sound pick.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{
    Candidates, Count, Decision, Info, Pair, Policy, Rejection, Request, RequestKey, Settings, export_policy,
    log,
};

/// Answers as its settings say: `answer` names the answer, `always` gives it in the trial, too.
#[derive(Debug, Default)]
pub struct Answers {
    trigger: Trigger,
    answer: String,
}

impl Policy for Answers {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.trigger.configure(settings)?;
        self.answer = settings.text("answer")?.unwrap_or_else(|| "abstain".into());
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new("answers", "1.0.0").request_keys(["header:x-team", RequestKey::Session.name()])
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.trigger.pulled(request) {
            return harmless(candidates);
        }
        match self.answer.as_str() {
            "abstain" => Decision::Abstain,
            "reject" => Decision::Reject(Rejection {
                status: 429,
                retry_after_s: 7,
                reason: "this team has had its share".into(),
            }),
            // Only those that name a team.
            "excludes-team" if request.key_named("header:x-team") != 0 => Decision::Reject(Rejection {
                status: 503,
                retry_after_s: 0,
                reason: "not for this team".into(),
            }),
            "pair" => Decision::Pair(Pair {
                prefill: 0,
                decode: 0,
            }),
            "wait" => Decision::Wait(5),
            "forgotten-column" => Decision::Pick(candidates.counts(Count::QueueDepth)[0]),
            "log" => {
                for number in 0..100 {
                    log::info(&format!("message {number} of one decision"));
                }
                harmless(candidates)
            }
            _ => harmless(candidates),
        }
    }
}

export_policy!(Answers);
