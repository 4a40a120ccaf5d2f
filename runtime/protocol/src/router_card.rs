//! The description that a router publishes of itself.

use serde::{Deserialize, Serialize};

use crate::WorkerId;

/// The name of one incarnation of a router. Each incarnation has a new name, of the same letters as a [`WorkerId`].
pub type RouterId = WorkerId;

/// The description of a router, published with discovery. Other routers count the load of a router while its card is
/// present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterCard {
    /// The name of this incarnation.
    pub id: RouterId,
    /// `host:port` of its OpenAI API.
    pub http: String,
    /// `host:port` of its admin API.
    pub admin: String,
    /// The release that the router runs.
    pub version: String,
}
