//! The settings of [`TtftCost`]: one for each of its weights.

use crate::{Settings, TtftCost};

impl TtftCost {
    /// Reads the weights from the settings; a weight that is not set has its default.
    ///
    /// # Errors
    /// A weight is not a number, or out of bounds.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, String> {
        let default = Self::default();
        Ok(Self {
            step_tokens: settings.number("step_tokens", default.step_tokens, 16.0..=1e6)?,
            pressure_ms: settings.number("pressure_ms", default.pressure_ms, 0.0..=1000.0)?,
            interruption: settings.number("interruption", default.interruption, 0.0..=10.0)?,
            company: settings.number("company", default.company, 0.0..=10.0)?,
            company_requests: settings.number("company_requests", default.company_requests, 0.01..=1000.0)?,
            answer_tokens: settings.number("answer_tokens", default.answer_tokens, 1.0..=1e5)?,
            churn: settings.number("churn", default.churn, 0.0..=10.0)?,
            host_weight: settings.number("host_weight", default.host_weight, 0.0..=1.0)?,
            disk_weight: settings.number("disk_weight", default.disk_weight, 0.0..=1.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_has_the_name_of_its_field() {
        let mut settings = Settings::parse(r#"{"churn": 2, "step_tokens": 2048}"#).expect("valid");
        let expected = TtftCost {
            churn: 2.0,
            step_tokens: 2_048.0,
            ..TtftCost::default()
        };
        assert_eq!(TtftCost::from_settings(&mut settings), Ok(expected));
        let mut settings = Settings::parse(r#"{"company_requests": 0}"#).expect("valid");
        assert!(TtftCost::from_settings(&mut settings).is_err());
    }
}
