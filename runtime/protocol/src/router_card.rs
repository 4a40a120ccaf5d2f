//! What a router says of itself.

use serde::{Deserialize, Serialize};

use crate::WorkerId;

/// One life of a router process: a name of its own that no other life has. The same letters as a [`WorkerId`]'s.
pub type RouterId = WorkerId;

/// A router's description, published with discovery: its presence is what lets other routers count its load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterCard {
    /// Which life of which router.
    pub id: RouterId,
    /// `host:port` of its OpenAI API.
    pub http: String,
    /// `host:port` of its admin API.
    pub admin: String,
    /// The release it runs.
    pub version: String,
}
