//! An operator of NATS with one account, for servers that take credentials files: what `nsc` would make.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// Signs accounts and users. Its keys are new with each value.
#[derive(Debug)]
pub struct NatsOperator {
    operator: KeyPair,
    account: KeyPair,
    /// A server with JetStream needs one. Without JetStream, and without users here.
    system: KeyPair,
}

impl Default for NatsOperator {
    fn default() -> Self {
        Self::new()
    }
}

impl NatsOperator {
    /// An operator with an account that may use JetStream.
    pub fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
            system: KeyPair::new_account(),
        }
    }

    /// The configuration of a server that trusts the operator and no other.
    pub fn configuration(&self) -> String {
        let operator = token(
            &self.operator,
            &self.operator,
            "operator",
            json!({"type": "operator", "version": 2}),
        );
        let account = |account: &KeyPair, name: &str, storage: i64| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
            });
            let claims = json!({"type": "account", "version": 2, "limits": limits});
            token(&self.operator, account, name, claims)
        };
        let (users, system) = (
            account(&self.account, "users", -1),
            account(&self.system, "system", 0),
        );
        format!(
            "operator: {operator}\nresolver: MEMORY\nsystem_account: {system_id}\n\
             resolver_preload: {{ {}: {users}, {system_id}: {system} }}\n",
            self.account.public_key(),
            system_id = self.system.public_key(),
        )
    }

    /// The contents of a credentials file of a user with these permissions: `{"pub": {"allow": […]}, "sub": …}`, or `{}`
    /// for all.
    pub fn credentials(&self, name: &str, permissions: &str) -> String {
        let user = KeyPair::new_user();
        let mut claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
        let permissions: Value = serde_json::from_str(permissions).expect("permissions in JSON");
        for (key, value) in permissions.as_object().expect("an object") {
            claims[key] = value.clone();
        }
        let jwt = token(&self.account, &user, name, claims);
        let seed = user.seed().expect("a seed");
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

/// A JWT that `issuer` signs for `subject`.
fn token(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = part(json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject.public_key(), "nats": nats,
    }));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
