//! `runtime policy`: checks components, and changes and shows the policies of a router by its admin API.

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    admin_client::{AdminClient, escaped},
    cli::{AdminOptions, ChoiceOptions, PolicyCommand},
    console, policy_kit, policy_test,
};

/// Runs the command. The exit code is 1 where `runtime policy test` finds a difference.
pub(crate) async fn run(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    let done = match command {
        PolicyCommand::Test(options) => return policy_test::run(&options),
        PolicyCommand::Kit(command) => policy_kit::run(&command),
        PolicyCommand::Check { file, settings } => check(&file, &settings),
        PolicyCommand::Push {
            file,
            name,
            settings,
            admin,
        } => push(&file, name, settings, &admin).await,
        PolicyCommand::List { admin } => {
            let listed = get(&admin, "/admin/v1/policies").await?;
            print(&admin, &listed, |listed| rows(&listed["policies"], policy_row))
        }
        PolicyCommand::Show {
            policy: Some(policy),
            admin,
            ..
        } => show(&admin, &format!("/admin/v1/policies/{}", escaped(&policy))).await,
        PolicyCommand::Show { model, admin, .. } => {
            show(&admin, &of_model(&model.unwrap_or_default(), "")).await
        }
        PolicyCommand::Download {
            policy,
            output,
            admin,
        } => {
            let path = format!("/admin/v1/policies/{}/component", escaped(&policy));
            let client = AdminClient::new(&admin)?;
            let component = client
                .send(Method::GET, &path, "application/json", Bytes::new())
                .await?;
            std::fs::write(&output, component).with_context(|| format!("cannot write {}", output.display()))
        }
        PolicyCommand::Activate { choice } => {
            let answer = choose(&choice, Method::PUT, "", Map::new()).await?;
            print(&choice.admin, &answer, change_lines)
        }
        PolicyCommand::Rollback {
            model,
            to_revision,
            revision,
            admin,
        } => {
            let body = json!({"to_revision": to_revision, "revision": revision});
            let answer = AdminClient::new(&admin)?
                .call(Method::POST, &of_model(&model, "/rollback"), Some(&body))
                .await?;
            print(&admin, &answer, change_lines)
        }
        PolicyCommand::History { model, admin } => {
            let answer = get(&admin, &of_model(&model, "/history")).await?;
            print(&admin, &answer, |answer| rows(&answer["history"], history_row))
        }
        PolicyCommand::Delete { policy, admin } => {
            let path = format!("/admin/v1/policies/{}", escaped(&policy));
            let answer = AdminClient::new(&admin)?
                .call(Method::DELETE, &path, None)
                .await?;
            print(&admin, &answer, |answer| {
                vec![format!("deleted {}", label(&answer["deleted"]))]
            })
        }
        PolicyCommand::Audit { admin } => {
            let answer = get(&admin, "/admin/v1/audit").await?;
            print(&admin, &answer, |answer| rows(&answer["records"], audit_row))
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// `runtime policy check`: checks a component as an upload does, without a router.
fn check(file: &Path, settings: &str) -> anyhow::Result<()> {
    let policy = policy_kit::admitted(file, settings)?;
    console::line(format_args!(
        "{} {}: {} bytes, sha256 {}; a router accepts it",
        policy.name(),
        policy.version(),
        policy.size_bytes(),
        policy.digest(),
    ));
    Ok(())
}

async fn push(
    file: &Path,
    name: Option<String>,
    settings: Option<String>,
    admin: &AdminOptions,
) -> anyhow::Result<()> {
    let wasm = read(file)?;
    let of_file = || {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        stem.unwrap_or_default()
    };
    let mut path = format!(
        "/admin/v1/policies?name={}",
        escaped(&name.unwrap_or_else(of_file))
    );
    if let Some(settings) = settings {
        path += &format!("&settings={}", escaped(&settings));
    }
    let answer = AdminClient::new(admin)?
        .send(Method::POST, &path, "application/wasm", wasm.into())
        .await?;
    let record: Value = serde_json::from_slice(&answer)?;
    print(admin, &record, |record| vec![policy_row(record)])
}

/// Sends a policy for a model, with further members of the body.
async fn choose(
    choice: &ChoiceOptions,
    method: Method,
    call: &str,
    mut body: Map<String, Value>,
) -> anyhow::Result<Value> {
    body.insert("policy".into(), choice.policy.clone().into());
    if let Some(settings) = &choice.settings {
        let settings = serde_json::from_str(settings).context("--settings is no JSON")?;
        body.insert("settings".into(), settings);
    }
    if let Some(revision) = choice.revision {
        body.insert("revision".into(), revision.into());
    }
    AdminClient::new(&choice.admin)?
        .call(method, &of_model(&choice.model, call), Some(&Value::Object(body)))
        .await
}

async fn show(admin: &AdminOptions, path: &str) -> anyhow::Result<()> {
    let answer = get(admin, path).await?;
    console::line(format_args!("{answer:#}"));
    Ok(())
}

async fn get(admin: &AdminOptions, path: &str) -> anyhow::Result<Value> {
    AdminClient::new(admin)?.call(Method::GET, path, None).await
}

fn of_model(model: &str, call: &str) -> String {
    // Slashes are part of a model's name, and the API takes them as they are.
    let model: Vec<String> = model.split('/').map(escaped).collect();
    format!("/admin/v1/models/{}/policy{call}", model.join("/"))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Prints an answer: as it is, or in lines.
fn print(
    admin: &AdminOptions,
    answer: &Value,
    lines: impl FnOnce(&Value) -> Vec<String>,
) -> anyhow::Result<()> {
    if admin.json {
        console::line(format_args!("{answer:#}"));
        return Ok(());
    }
    for line in lines(answer) {
        console::line(format_args!("{line}"));
    }
    Ok(())
}

fn rows(list: &Value, row: impl Fn(&Value) -> String) -> Vec<String> {
    list.as_array().into_iter().flatten().map(row).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn label(record: &Value) -> String {
    format!("{}@{}", text(&record["name"]), text(&record["version"]))
}

fn digest(value: &Value) -> String {
    text(value).chars().take(12).collect()
}

fn policy_row(record: &Value) -> String {
    let models: Vec<&str> = record["models"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    let for_models = match models.is_empty() {
        true => String::new(),
        false => format!(" for {}", models.join(", ")),
    };
    let because = match record["reason"].as_str() {
        Some(reason) => format!(", because it {reason}"),
        None => String::new(),
    };
    format!(
        "{:32} {} {:>8} bytes  {}{for_models}{because}",
        label(record),
        digest(&record["digest"]),
        record["size_bytes"],
        text(&record["state"]),
    )
}

fn change_lines(answer: &Value) -> Vec<String> {
    let mut lines = vec![format!(
        "{} decides for {} from revision {} on, in place of {}",
        text(&answer["active"]["policy"]),
        text(&answer["model"]),
        answer["revision"],
        text(&answer["before"]["policy"]),
    )];
    if answer["served"] == false {
        lines.push(format!("no worker serves {} yet", text(&answer["model"])));
    }
    lines
}

fn history_row(item: &Value) -> String {
    let reason = match item["reason"].as_str() {
        Some(reason) => format!("  because {reason}"),
        None => String::new(),
    };
    format!(
        "{:>6}  {}  {:10} {:32} {}  {}{reason}",
        item["revision"],
        time(&item["at_unix_ms"]),
        text(&item["action"]),
        text(&item["policy"]),
        digest(&item["digest"]),
        text(&item["by"]),
    )
}

fn audit_row(record: &Value) -> String {
    let model = match record["model"].as_str() {
        Some(model) => format!(" for {model}"),
        None => String::new(),
    };
    let reason = match record["reason"].as_str() {
        Some(reason) => format!("  because {reason}"),
        None => String::new(),
    };
    format!(
        "{}  {:10} {}{model}  {}{reason}",
        time(&record["at_unix_ms"]),
        text(&record["action"]),
        text(&record["policy"]),
        text(&record["by"]),
    )
}

/// A time in UTC, to the second; blanks where it is not known.
fn time(unix_ms: &Value) -> String {
    let known = unix_ms.as_i64().filter(|ms| *ms > 0);
    let time = known.and_then(|ms| Timestamp::from_second(ms / 1_000).ok());
    time.map_or_else(
        || " ".repeat("2026-01-01T00:00:00Z".len()),
        |time| time.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_printed_in_utc() {
        let cases = [
            (951_782_400_000_u64, "2000-02-29T00:00:00Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59Z"),
            (1_785_600_001_000, "2026-08-01T16:00:01Z"),
            (0, "                    "),
        ];
        for (unix_ms, expected) in cases {
            assert_eq!(time(&unix_ms.into()), expected);
        }
    }

    #[test]
    fn a_models_name_keeps_its_slashes() {
        assert_eq!(
            of_model("org/m v1", "/history"),
            "/admin/v1/models/org/m%20v1/policy/history"
        );
    }
}
