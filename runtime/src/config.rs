//! Options from a file, for `serve` and `worker`.
//!
//! The command line defines all options: a file's keys are the long options with `_` for `-`, and its values are read
//! by the same parsers. A key at the top of the file is for every command that has this option. A key under `[serve]`
//! or `[worker]` is for that command only, and wins over the key at the top. A flag wins over the environment, the
//! environment over the file, the file over the default. A key that no command has is an error, never ignored.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, error::ErrorKind,
    parser::ValueSource,
};
use toml::{Table, Value};

use crate::cli::{Cli, Configurable};

mod show;

pub(crate) use show::{check, example, show};

/// Largest file that is read. Settings take a few kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Options that no file can set: they are for one run only.
const NOT_SETTINGS: [&str; 4] = ["config", "child", "help", "version"];

/// How similar, from 0 to 1, a known key must be to a wrong one to be suggested instead.
const MIN_SIMILARITY: f64 = 0.75;

/// Parses the command line, with the options of the file that it names.
///
/// Like clap, this exits the process if the command line is wrong or asks for help.
///
/// # Errors
/// The file cannot be read, or is wrong.
pub fn command_line(arguments: Vec<OsString>) -> anyhow::Result<Cli> {
    match completed(arguments)? {
        Ok(matches) => Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())),
        Err(error) => error.exit(),
    }
}

/// Adds the options of the file that the arguments name, and parses all of them.
fn completed(mut arguments: Vec<OsString>) -> anyhow::Result<Result<ArgMatches, clap::Error>> {
    // Without the file the arguments may be incomplete: here only the file's name and the given options matter.
    if let Ok(matches) = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(&arguments)
        && let Some((name, given)) = matches.subcommand()
        && let Some(command) = Configurable::named(name)
        && let Some(path) = given.get_one::<PathBuf>("config")
    {
        let file = SettingsFile::read(path)?;
        let is_given = |id: &str| {
            let source = given.value_source(id);
            matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        };
        arguments.extend(file.arguments(command, |id| !is_given(id)).map(OsString::from));
    }
    Ok(Cli::command().try_get_matches_from(arguments))
}

/// The options that a process runs with, to be read again while it runs.
#[derive(Debug)]
pub(crate) struct RunningOptions {
    arguments: Vec<OsString>,
    /// The values in effect, by key.
    values: BTreeMap<String, Vec<OsString>>,
}

/// Options that were read again, and are not yet in effect.
#[derive(Debug)]
pub(crate) struct RereadOptions {
    matches: ArgMatches,
    values: BTreeMap<String, Vec<OsString>>,
}

impl RunningOptions {
    /// Those of this process.
    pub(crate) fn of_process() -> anyhow::Result<Self> {
        Self::of(std::env::args_os().collect())
    }

    fn of(arguments: Vec<OsString>) -> anyhow::Result<Self> {
        let values = Self::read(&arguments)?.values;
        Ok(Self { arguments, values })
    }

    /// Reads the file of settings again, with the same arguments and environment.
    ///
    /// # Errors
    /// The file cannot be read, or is wrong.
    pub(crate) fn read_again(&self) -> anyhow::Result<RereadOptions> {
        Self::read(&self.arguments)
    }

    fn read(arguments: &[OsString]) -> anyhow::Result<RereadOptions> {
        let matches = completed(arguments.to_vec())?.map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            anyhow::anyhow!("{}", line.trim_start_matches("error: "))
        })?;
        let values = matches.subcommand().and_then(|(name, given)| {
            let command = Configurable::named(name)?;
            Some(values(command, given))
        });
        Ok(RereadOptions {
            values: values.unwrap_or_default(),
            matches,
        })
    }

    /// The keys whose values are not those in effect.
    pub(crate) fn changes(&self, read: &RereadOptions) -> Vec<String> {
        let differs = |key: &&String| self.values.get(*key) != read.values.get(*key);
        read.values.keys().filter(differs).cloned().collect()
    }

    /// Notes that the value of `key` is in effect.
    pub(crate) fn take_over(&mut self, key: &str, read: &RereadOptions) {
        if let Some(value) = read.values.get(key) {
            self.values.insert(key.to_owned(), value.clone());
        }
    }
}

impl RereadOptions {
    /// The command line with these options.
    pub(crate) fn cli(&self) -> anyhow::Result<Cli> {
        Ok(Cli::from_arg_matches(&self.matches)?)
    }
}

/// The value of each setting; none for one that is not set.
fn values(command: Configurable, matches: &ArgMatches) -> BTreeMap<String, Vec<OsString>> {
    let value = |arg: &Arg| match arg.get_action() {
        ArgAction::SetTrue => vec![matches.get_flag(arg.get_id().as_str()).to_string().into()],
        _ => {
            let given = matches.get_raw(arg.get_id().as_str());
            given.map_or_else(Vec::new, |values| values.map(Into::into).collect())
        }
    };
    let settings = command.settings();
    settings
        .iter()
        .map(|(key, arg)| (key.clone(), value(arg)))
        .collect()
}

impl Configurable {
    const ALL: [Self; 2] = [Self::Serve, Self::Worker];

    fn name(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Worker => "worker",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.name() == name)
    }

    /// The command with its options, including those of all commands.
    fn command(self) -> Command {
        let mut cli = Cli::command();
        cli.build();
        cli.find_subcommand(self.name()).cloned().unwrap_or_default()
    }

    /// The command's options that a file can set, by key.
    fn settings(self) -> BTreeMap<String, Arg> {
        let command = self.command();
        let is_setting = |arg: &&Arg| !NOT_SETTINGS.contains(&arg.get_id().as_str());
        let keyed = |arg: &Arg| Some((arg.get_long()?.replace('-', "_"), arg.clone()));
        command
            .get_arguments()
            .filter(is_setting)
            .filter_map(keyed)
            .collect()
    }
}

/// A file that was read and checked.
#[derive(Debug)]
pub(crate) struct SettingsFile {
    /// For each command, the arguments of each set option, by the option's id.
    settings: Vec<(Configurable, BTreeMap<String, Vec<String>>)>,
}

impl SettingsFile {
    /// Reads a file and checks every key and value in it.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let size = std::fs::metadata(path)
            .with_context(|| format!("cannot read the settings in {shown}"))?
            .len();
        if size > MAX_FILE_BYTES {
            bail!("{shown} has {size} bytes; a file of settings may have {MAX_FILE_BYTES}");
        }
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the settings in {shown}"))?;
        Self::parse(&text).with_context(|| format!("the settings in {shown} are wrong"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut top: Table = text.parse().map_err(|error: toml::de::Error| {
            // The error's own text has several lines; an error here is one line.
            let line = error.span().map_or(1, |span| {
                1 + text[..span.start.min(text.len())].matches('\n').count()
            });
            anyhow::anyhow!("line {line}: {}", error.message())
        })?;
        let mut sections = Vec::new();
        for command in Configurable::ALL {
            let section = match top.remove(command.name()) {
                None => Table::new(),
                Some(Value::Table(section)) => section,
                Some(_) => bail!("{} is a section; write [{}]", command.name(), command.name()),
            };
            sections.push((command, section));
        }
        let known: Vec<_> = Configurable::ALL.map(Configurable::settings).into();
        for key in top.keys() {
            if !known.iter().any(|settings| settings.contains_key(key)) {
                let names = known.iter().flat_map(BTreeMap::keys).map(String::as_str);
                bail!(unknown_key(key, names.chain(["serve", "worker"])));
            }
        }
        let mut settings = Vec::new();
        for ((command, section), known) in sections.into_iter().zip(&known) {
            let mut arguments = BTreeMap::new();
            if let Some(key) = section.keys().find(|key| !known.contains_key(*key)) {
                let problem = unknown_key(key, known.keys().map(String::as_str));
                bail!("[{}] {problem}", command.name());
            }
            for (key, arg) in known {
                if let Some(value) = section.get(key).or_else(|| top.get(key)) {
                    let given = as_arguments(arg, key, value)?;
                    check_value(command, &given).with_context(|| format!("[{}] {key}", command.name()))?;
                    arguments.insert(arg.get_id().to_string(), given);
                }
            }
            settings.push((command, arguments));
        }
        Ok(Self { settings })
    }

    /// The arguments for `command` of the options whose ids `wanted` returns true for.
    fn arguments(&self, command: Configurable, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        self.of(command)
            .filter(move |(id, _)| wanted(id))
            .flat_map(|(_, arguments)| arguments.iter().map(String::as_str))
    }

    fn of(&self, command: Configurable) -> impl Iterator<Item = (&String, &Vec<String>)> {
        self.settings
            .iter()
            .filter(move |(of, _)| *of == command)
            .flat_map(|(_, settings)| settings)
    }
}

/// The arguments that set this option on the command line.
fn as_arguments(arg: &Arg, key: &str, value: &Value) -> anyhow::Result<Vec<String>> {
    let flag = key.replace('_', "-");
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            Value::Boolean(true) => Ok(vec![format!("--{flag}")]),
            Value::Boolean(false) => Ok(Vec::new()),
            other => bail!("{key} is {}; give true or false", other.type_str()),
        };
    }
    let argument = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{flag}={text}")),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(format!("--{flag}={value}")),
        other => bail!(
            "{key} is {}; give text, a number, true or false",
            other.type_str()
        ),
    };
    match value {
        Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            values.iter().map(argument).collect()
        }
        Value::Array(_) => bail!("{key} takes one value, not several"),
        value => Ok(vec![argument(value)?]),
    }
}

/// Checks a value with the option's own parser.
fn check_value(command: Configurable, arguments: &[String]) -> anyhow::Result<()> {
    let name = String::from(command.name());
    // Only the file is checked here, not the environment.
    let command = command.command().mut_args(|arg| arg.env(None::<&str>));
    match command.try_get_matches_from([&name].into_iter().chain(arguments)) {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) => {
            let text = error.to_string();
            bail!(
                "{}",
                text.lines()
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
            )
        }
        _ => Ok(()),
    }
}

fn unknown_key<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let closest = known
        .map(|name| (strsim::jaro_winkler(key, name), name))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match closest {
        Some((_, name)) => format!("{key} is no setting; did you mean {name}?"),
        None => format!("{key} is no setting; `runtime config example` prints all settings"),
    }
}

#[cfg(test)]
mod tests;
