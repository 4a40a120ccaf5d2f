//! `runtime config show`, `check` and `example`: settings printed for people.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, parser::ValueSource};
use signalbox_nats::without_secrets;

use super::{Configurable, SettingsFile, completed};
use crate::console;

/// Prints the settings that result from `arguments` in the format of a file, each with its source.
pub(crate) fn show(command: Configurable, arguments: &[String]) -> anyhow::Result<()> {
    let line = ["runtime", command.name()]
        .into_iter()
        .chain(arguments.iter().map(String::as_str));
    let matches = match completed(line.clone().map(Into::into).collect())? {
        Ok(matches) => matches,
        Err(error) => error.exit(),
    };
    let Some((_, matches)) = matches.subcommand() else {
        return Ok(());
    };
    let file = matches.get_one::<PathBuf>("config");
    let settings = file.map(|path| SettingsFile::read(path)).transpose()?;
    console::line(format_args!("[{}]", command.name()));
    for (key, arg) in command.settings() {
        let id = arg.get_id().as_str();
        let in_file = settings
            .as_ref()
            .is_some_and(|file| file.of(command).any(|(of, _)| of == id));
        let given = arguments.iter().any(|argument| {
            let flag = argument.split('=').next().unwrap_or_default();
            flag.strip_prefix("--") == arg.get_long()
        });
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) if in_file && !given => "file",
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            Some(_) => "default",
            None => "not set",
        };
        match shown(&arg, matches) {
            Some(value) => console::line(format_args!("{key} = {value}  # {source}")),
            None => console::line(format_args!("# {key}  # {source}")),
        }
    }
    Ok(())
}

/// The value as TOML; `None` if the option is not set.
fn shown(arg: &Arg, matches: &ArgMatches) -> Option<String> {
    let id = arg.get_id().as_str();
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Some(matches.get_flag(id).to_string());
    }
    let values: Vec<String> = matches
        .get_raw(id)?
        .map(|value| match (is_address(arg), is_secret(arg)) {
            (true, _) => quoted(&without_secrets(&value.to_string_lossy())),
            (false, true) => quoted("***"),
            (false, false) => literal(&value.to_string_lossy()),
        })
        .collect();
    match (arg.get_action(), values.as_slice()) {
        (ArgAction::Append, values) => Some(format!("[{}]", values.join(", "))),
        (_, [value, ..]) => Some(value.clone()),
        (_, []) => None,
    }
}

/// Whether the values are addresses, in which only what stands before a host is secret.
fn is_address(arg: &Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    names.first().is_some_and(|name| name.as_str() == "URL")
}

fn is_secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set()
}

/// Checks a file for every command.
pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
    let file = SettingsFile::read(path)?;
    let counts = Configurable::ALL
        .map(|command| format!("{} for {}", file.of(command).count(), command.name()))
        .join(", ");
    console::line(format_args!("{}: right; settings: {counts}", path.display()));
    Ok(())
}

/// Prints a file with every setting, commented out.
pub(crate) fn example() -> anyhow::Result<()> {
    console::line(format_args!("{}", example_text()?));
    Ok(())
}

/// All settings with their defaults or placeholders, commented out: the file changes nothing until it is edited.
pub(super) fn example_text() -> anyhow::Result<String> {
    let mut text = String::from(
        "# Settings of Signalbox. A flag wins over the environment, the environment over this file.\n\
         # Settings that routers and workers share may be set here, before the sections.\n",
    );
    for command in Configurable::ALL {
        text.push_str(&format!("\n[{}]\n", command.name()));
        for (key, arg) in command.settings() {
            let help = arg
                .get_long_help()
                .or_else(|| arg.get_help())
                .context("every option has help")?;
            let help = help.to_string();
            text.push('\n');
            for line in help.lines() {
                text.push_str(&format!("# {line}\n"));
            }
            if let Some(env) = arg.get_env() {
                text.push_str(&format!("# Environment: {}\n", env.to_string_lossy()));
            }
            text.push_str(&format!("#{key} = {}\n", example_value(&arg)));
        }
    }
    Ok(text)
}

fn example_value(arg: &Arg) -> String {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return "false".into();
    }
    let value = match arg.get_default_values() {
        [default, ..] => literal(&default.to_string_lossy()),
        [] => {
            let name = arg.get_value_names().and_then(|names| names.first());
            quoted(name.map_or("VALUE", |name| name.as_str()))
        }
    };
    match arg.get_action() {
        ArgAction::Append => format!("[{value}]"),
        _ => value,
    }
}

/// Numbers as they are, everything else as text.
fn literal(value: &str) -> String {
    if value.parse::<i64>().is_ok() || value.parse::<f64>().is_ok_and(f64::is_finite) {
        value.into()
    } else {
        quoted(value)
    }
}

fn quoted(value: &str) -> String {
    toml::Value::from(value).to_string()
}
