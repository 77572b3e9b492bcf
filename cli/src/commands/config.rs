//! `config`: of a running daemon where there is one, else of the file.

use std::path::Path;

use bitmesh_node::{
    config::{Config, ConfigError},
    control::{
        ErrorCode,
        api::{ConfigChange, ConfigValue, ConfigValues, GetConfig, SetConfig},
    },
    paths::create_private_dir,
    settings::{self, SettingError},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    args::{ConfigCommand, PathName},
    context::Context,
    failure::Failure,
    output::Style,
    render,
};

pub(super) fn run(context: &Context, command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Get { key } => get(context, key),
        ConfigCommand::Set { key, value } => set(context, &key, &value),
        ConfigCommand::Check => check(context),
        ConfigCommand::Path { name } => path(context, name),
    }
}

fn get(context: &Context, key: Option<String>) -> Result<(), Failure> {
    let values = match context.call(&GetConfig { key: key.clone() }, "asking the daemon") {
        Err(Failure::Api(error)) if error.code == ErrorCode::Unreachable => {
            from_file(context, key.as_deref())?
        }
        answer => answer?,
    };
    Ok(context.out.reply(&values, render::config_values)?)
}

fn from_file(context: &Context, key: Option<&str>) -> Result<ConfigValues, Failure> {
    let file = &context.paths.config;
    let text = settings::read(file)?;
    let config = Config::load(file)?;
    let values = settings::list(&config, &text, key)?;
    let values = values.into_iter().map(|setting| ConfigValue {
        key: setting.key,
        value: json(&setting.value),
        origin: setting.origin.as_str().to_owned(),
    });
    Ok(ConfigValues {
        file: file.display().to_string(),
        values: values.collect(),
    })
}

fn set(context: &Context, key: &str, value: &str) -> Result<(), Failure> {
    let wanted = SetConfig {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let change = match context.call(&wanted, "asking the daemon") {
        Err(Failure::Api(error)) if error.code == ErrorCode::Unreachable => {
            let file = &context.paths.config;
            let (text, value) = changed(file, &settings::read(file)?, key, value)?;
            if let Some(folder) = file.parent() {
                create_private_dir(folder)
                    .map_err(|error| Failure::file("make", folder, &error))?;
            }
            settings::write(file, &text).map_err(|error| Failure::file("write", file, &error))?;
            ConfigChange {
                key: key.to_owned(),
                value: json(&value),
                file: file.display().to_string(),
                restart_needed: false,
            }
        }
        answer => answer?,
    };
    Ok(context.out.reply(&change, render::config_change)?)
}

/// The text of `file` with one setting changed, and the value as it stands there. If the file is no
/// TOML as it is, that is the error, with its name.
pub(super) fn changed(
    file: &Path,
    text: &str,
    key: &str,
    value: &str,
) -> Result<(String, impl Serialize + use<>), Failure> {
    settings::set(text, key, value).map_err(|error| match (&error, settings::network(file)) {
        (SettingError::Config(ConfigError::Parse { .. }), Err(own)) => own.into(),
        _ => error.into(),
    })
}

#[derive(Serialize)]
struct Checked {
    file: String,
    exists: bool,
    ok: bool,
}

fn check(context: &Context) -> Result<(), Failure> {
    let file = &context.paths.config;
    Config::load(file)?;
    let checked = Checked {
        file: file.display().to_string(),
        exists: file.exists(),
        ok: true,
    };
    Ok(context.out.reply(&checked, |checked, style| {
        let note = if checked.exists {
            ""
        } else {
            " (not there: every setting has its default)"
        };
        format!("{} {}{note}\n", style.good("ok"), checked.file)
    })?)
}

#[derive(Serialize)]
struct Places {
    network: String,
    config: String,
    datadir: String,
    socket: String,
    log: String,
    words: String,
    journal: String,
}

fn path(context: &Context, name: Option<PathName>) -> Result<(), Failure> {
    let paths = &context.paths;
    let places = Places {
        network: context.network.to_string(),
        config: paths.config.display().to_string(),
        datadir: paths.datadir.display().to_string(),
        socket: paths.socket.display().to_string(),
        log: paths.log.display().to_string(),
        words: paths.words().display().to_string(),
        journal: paths.journal().display().to_string(),
    };
    let Some(name) = name else {
        return Ok(context.out.reply(&places, |places, style: Style| {
            let rows = [
                ("network", &places.network),
                ("config", &places.config),
                ("datadir", &places.datadir),
                ("socket", &places.socket),
                ("log", &places.log),
                ("words", &places.words),
                ("journal", &places.journal),
            ];
            rows.map(|(name, place)| {
                let room = " ".repeat("datadir".len() - name.len());
                format!("{}{room}  {place}\n", style.dim(name))
            })
            .concat()
        })?);
    };
    let (key, place) = match name {
        PathName::Config => ("config", &places.config),
        PathName::Datadir => ("datadir", &places.datadir),
        PathName::Socket => ("socket", &places.socket),
        PathName::Log => ("log", &places.log),
        PathName::Words => ("words", &places.words),
        PathName::Journal => ("journal", &places.journal),
    };
    let object = Value::Object(
        [(key.to_owned(), Value::from(place.as_str()))]
            .into_iter()
            .collect(),
    );
    Ok(context.out.reply(&object, |_, _| format!("{place}\n"))?)
}

/// A value of the file as the API writes it.
pub(super) fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::Read { .. } => "check that the file is yours",
            ConfigError::Parse { .. } => "mend the file, then: bitmesh config check",
            ConfigError::Value { .. } => "change it in the file, or with: bitmesh config set",
        };
        Self::new(ErrorCode::Usage, error.to_string(), hint)
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        match error {
            SettingError::Unknown { .. } => Self::new(
                ErrorCode::NotFound,
                error.to_string(),
                "\"bitmesh config get\" lists them",
            ),
            SettingError::Section(ref name) => {
                let hint = format!("\"bitmesh config get {name}\" lists them");
                Self::new(ErrorCode::Usage, error.to_string(), hint)
            }
            SettingError::Config(error) => error.into(),
            SettingError::Write(_) => Self::new(
                ErrorCode::Failure,
                error.to_string(),
                "check that the file and its folder are yours",
            ),
        }
    }
}
