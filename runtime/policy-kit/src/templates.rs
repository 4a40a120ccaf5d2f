//! The files of new folders, embedded: a user who has only the binary gets them all.
//!
//! They are in `policies/templates`, `policies/sdk` and `wit`. `{{name}}` in them stands for the policy's name.

use crate::language::Language;

/// A file of a new folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TemplateFile {
    /// Where it goes, from the folder.
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
}

macro_rules! files {
    ($($path:literal from $source:literal;)*) => {
        &[$(TemplateFile { path: $path, text: include_str!(concat!("../../../", $source)) }),*]
    };
}

/// The files of a language, without those of [`INTERFACE`].
pub(crate) const fn files_of(language: Language) -> &'static [TemplateFile] {
    match language {
        Language::Rust => RUST,
        Language::C => C,
        Language::Js => JS,
        Language::Python => PYTHON,
    }
}

/// The interface that every policy is written for.
pub(crate) const INTERFACE: &[TemplateFile] = files! {
    "wit/diagnostics.wit" from "wit/diagnostics.wit";
    "wit/explainer.wit" from "wit/explainer.wit";
    "wit/learning.wit" from "wit/learning.wit";
    "wit/policy.wit" from "wit/policy.wit";
    "wit/routing.wit" from "wit/routing.wit";
    "wit/types.wit" from "wit/types.wit";
};

const RUST: &[TemplateFile] = files! {
    "Cargo.toml" from "policies/templates/rust/Cargo.toml.in";
    ".cargo/config.toml" from "policies/templates/rust/cargo-config.toml";
    ".gitignore" from "policies/templates/rust/gitignore";
    "README.md" from "policies/templates/rust/README.md";
    "src/lib.rs" from "policies/templates/rust/policy.rs";
    "sdk/Cargo.toml" from "policies/sdk/Cargo.toml";
    "sdk/LICENSE" from "LICENSE";
    "sdk/src/bindings.rs" from "policies/sdk/src/bindings.rs";
    "sdk/src/bindings/explaining.rs" from "policies/sdk/src/bindings/explaining.rs";
    "sdk/src/bindings/learning.rs" from "policies/sdk/src/bindings/learning.rs";
    "sdk/src/bindings/policy.rs" from "policies/sdk/src/bindings/policy.rs";
    "sdk/src/candidates.rs" from "policies/sdk/src/candidates.rs";
    "sdk/src/columns.rs" from "policies/sdk/src/columns.rs";
    "sdk/src/draw.rs" from "policies/sdk/src/draw.rs";
    "sdk/src/draws.rs" from "policies/sdk/src/draws.rs";
    "sdk/src/explain.rs" from "policies/sdk/src/explain.rs";
    "sdk/src/guest.rs" from "policies/sdk/src/guest.rs";
    "sdk/src/kv_cost.rs" from "policies/sdk/src/kv_cost.rs";
    "sdk/src/lib.rs" from "policies/sdk/src/lib.rs";
    "sdk/src/load_measure.rs" from "policies/sdk/src/load_measure.rs";
    "sdk/src/log.rs" from "policies/sdk/src/log.rs";
    "sdk/src/predicted_ttft.rs" from "policies/sdk/src/predicted_ttft.rs";
    "sdk/src/predicted_ttft/tests.rs" from "policies/sdk/src/predicted_ttft/tests.rs";
    "sdk/src/recent_placements.rs" from "policies/sdk/src/recent_placements.rs";
    "sdk/src/rendezvous.rs" from "policies/sdk/src/rendezvous.rs";
    "sdk/src/request.rs" from "policies/sdk/src/request.rs";
    "sdk/src/row_memory.rs" from "policies/sdk/src/row_memory.rs";
    "sdk/src/settings.rs" from "policies/sdk/src/settings.rs";
    "sdk/src/ttft_settings.rs" from "policies/sdk/src/ttft_settings.rs";
    "sdk/src/worker_speed.rs" from "policies/sdk/src/worker_speed.rs";
};

const C: &[TemplateFile] = files! {
    ".gitignore" from "policies/templates/c/gitignore";
    "Makefile" from "policies/templates/c/Makefile";
    "README.md" from "policies/templates/c/README.md";
    "policy.c" from "policies/templates/c/policy.c";
    "test_policy.c" from "policies/templates/c/test_policy.c";
    "sdk/signalbox.h" from "policies/templates/c/sdk/signalbox.h";
    "sdk/component.h" from "policies/templates/c/sdk/component.h";
    "sdk/settings.h" from "policies/templates/c/sdk/settings.h";
};

const JS: &[TemplateFile] = files! {
    "README.md" from "policies/templates/js/README.md";
    "component.js" from "policies/templates/js/component.js";
    "package.json" from "policies/templates/js/package.json";
    "policy.js" from "policies/templates/js/policy.js";
    "policy.test.js" from "policies/templates/js/policy.test.js";
    "signalbox.js" from "policies/templates/js/signalbox.js";
    ".gitignore" from "policies/templates/js/gitignore";
};

const PYTHON: &[TemplateFile] = files! {
    "README.md" from "policies/templates/python/README.md";
    "component.py" from "policies/templates/python/component.py";
    "policy.py" from "policies/templates/python/policy.py";
    "requirements.txt" from "policies/templates/python/requirements.txt";
    "signalbox.py" from "policies/templates/python/signalbox.py";
    "test_policy.py" from "policies/templates/python/test_policy.py";
    ".gitignore" from "policies/templates/python/gitignore";
};
