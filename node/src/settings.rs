//! One setting at a time: reading, listing and changing the configuration file without losing what
//! its owner wrote around the values.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use bitmesh_market::envelope::Network;
use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};
use toml_edit::{Array, DocumentMut, Item};

use crate::config::{Config, ConfigError};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File,
    /// BitMesh itself.
    Default,
}

impl Origin {
    /// Returns the name that the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

/// One setting with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Dotted name: `sell.price`.
    pub key: String,
    /// Value in force.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
}

/// Why a setting could not be read or changed. Nothing was written.
#[derive(Debug, Error)]
pub enum SettingError {
    /// No setting has that name.
    #[error("no setting {key}{}", suggestion(.nearest))]
    Unknown {
        /// The name asked for.
        key: String,
        /// The most similar name there is, if one is similar.
        nearest: Option<String>,
    },
    /// It is a section, and only its settings have values.
    #[error("{0} is a section; name one of its settings")]
    Section(String),
    /// The configuration with the new value, or as it stands, cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file could not be read or written.
    #[error("cannot write the configuration: {0}")]
    Write(#[from] io::Error),
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|name| format!("; did you mean {name}?"))
        .unwrap_or_default()
}

/// Reads which network the file at `path` names, and nothing else: a client must find its daemon
/// even if the rest of the file has gone bad since that was started.
///
/// # Errors
///
/// [`ConfigError`] if the file cannot be read, is not TOML, or names no network there is.
pub fn network(path: &Path) -> Result<Option<Network>, ConfigError> {
    #[derive(Deserialize)]
    struct Only {
        network: Option<Network>,
    }
    let text = read(path)?;
    let only: Only = toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })?;
    Ok(only.network)
}

/// Reads the file at `path`; one that does not exist is empty.
///
/// # Errors
///
/// [`ConfigError::Read`].
pub fn read(path: &Path) -> Result<String, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Lists the settings of `config` whose name is `key` or begins with it as a section; all of them
/// without one. `text` is the file it was read from, and says which of them stand there.
///
/// # Errors
///
/// [`SettingError::Unknown`] if there is none.
pub fn list(config: &Config, text: &str, key: Option<&str>) -> Result<Vec<Setting>, SettingError> {
    let written: Table = text.parse().unwrap_or_default();
    let all = leaves(&Value::try_from(config).unwrap_or(Value::Table(Table::new())));
    let chosen = |name: &str| {
        key.is_none_or(|key| {
            name.strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let settings: Vec<Setting> = all
        .iter()
        .filter(|(name, _)| chosen(name))
        .map(|(name, value)| Setting {
            key: name.clone(),
            value: value.clone(),
            origin: if stands_in(&written, name) {
                Origin::File
            } else {
                Origin::Default
            },
        })
        .collect();
    match key {
        Some(key) if settings.is_empty() => Err(unknown(key)),
        _ => Ok(settings),
    }
}

/// Returns `text` with the setting `key` changed to `value`, comments and order kept, and the value
/// as it stands there. The result is checked as a whole.
///
/// `value` is TOML where that gives the kind of value which the setting has; else it is taken as
/// text, so that `90 sat/GB` needs no quotes.
///
/// # Errors
///
/// [`SettingError`] if there is no such setting, or the configuration could not work with it.
pub fn set(text: &str, key: &str, value: &str) -> Result<(String, Value), SettingError> {
    let defaults = leaves(&Value::try_from(Config::default()).unwrap_or(Value::Integer(0)));
    let default = defaults
        .iter()
        .find(|(name, _)| name == key)
        .map(|(_, value)| value);
    if default.is_none()
        && defaults
            .iter()
            .any(|(name, _)| name.starts_with(&format!("{key}.")))
    {
        return Err(SettingError::Section(key.to_owned()));
    }
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        SettingError::Config(ConfigError::Parse {
            path: "configuration".into(),
            reason: error.to_string().trim_end().to_owned(),
        })
    })?;

    let (sections, name) = match key.rsplit_once('.') {
        Some((sections, name)) => (sections.split('.').collect(), name),
        None => (Vec::new(), key),
    };
    let mut table = document.as_table_mut();
    for section in sections {
        let mut fresh = toml_edit::Table::new();
        // Only the innermost section gets a heading of its own.
        fresh.set_implicit(true);
        let entry = table.entry(section).or_insert(Item::Table(fresh));
        table = match entry.as_table_mut() {
            Some(table) => table,
            None => return Err(unknown(key)),
        };
    }
    let new = typed(value, default);
    match table.get_mut(name).and_then(Item::as_value_mut) {
        Some(old) => {
            // What stands behind a value, a comment perhaps, belongs to its line.
            let decor = old.decor().clone();
            *old = new;
            *old.decor_mut() = decor;
        }
        None => {
            table.insert(name, Item::Value(new));
        }
    }

    let changed = document.to_string();
    let config = Config::parse(&changed).map_err(|error| match error {
        ConfigError::Parse { ref reason, .. } if reason.contains("unknown field") => unknown(key),
        other => SettingError::Config(other),
    })?;
    let stands = leaves(&Value::try_from(&config).unwrap_or(Value::Integer(0)))
        .into_iter()
        .find(|(name, _)| name == key)
        .map_or_else(|| Value::String(value.to_owned()), |(_, value)| value);
    Ok((changed, stands))
}

/// Puts `text` in place of the file at `path`, all of it or none, even if power fails meanwhile.
///
/// # Errors
///
/// What the file system says; the old file is then as it was.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let written = (|| {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// All settings below `value` with their dotted names, in the order of the names.
fn leaves(value: &Value) -> Vec<(String, Value)> {
    fn walk(value: &Value, name: &str, found: &mut Vec<(String, Value)>) {
        match value {
            Value::Table(table) => {
                for (key, inner) in table {
                    let name = if name.is_empty() {
                        key.clone()
                    } else {
                        format!("{name}.{key}")
                    };
                    walk(inner, &name, found);
                }
            }
            other => found.push((name.to_owned(), other.clone())),
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

fn stands_in(table: &Table, name: &str) -> bool {
    match name.split_once('.') {
        None => table.contains_key(name),
        Some((section, rest)) => table
            .get(section)
            .and_then(Value::as_table)
            .is_some_and(|inner| stands_in(inner, rest)),
    }
}

fn typed(value: &str, default: Option<&Value>) -> toml_edit::Value {
    let parsed = value.parse::<toml_edit::Value>().ok();
    match (parsed, default) {
        (Some(parsed), None) => parsed,
        (Some(parsed), Some(Value::String(_))) if parsed.is_str() => parsed,
        (Some(parsed), Some(Value::Array(_))) if parsed.is_array() => parsed,
        (_, Some(Value::Array(_))) => {
            let parts = value
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            toml_edit::Value::Array(parts.collect::<Array>())
        }
        (Some(parsed), Some(default)) if !default.is_str() => parsed,
        (Some(_) | None, _) => value.into(),
    }
}

fn unknown(key: &str) -> SettingError {
    let defaults = leaves(&Value::try_from(Config::default()).unwrap_or(Value::Integer(0)));
    let nearest = defaults
        .into_iter()
        .map(|(name, _)| (distance(key, &name), name))
        .min()
        // Further away it is a guess, not a slip.
        .filter(|(distance, name)| *distance <= name.len() / 3)
        .map(|(_, name)| name);
    SettingError::Unknown {
        key: key.to_owned(),
        nearest,
    }
}

/// How many letters have to be put in, taken out or changed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_keeps_what_its_owner_wrote_around_it() {
        let text =
            "# mine\nnetwork = \"signet\" # play\n\n[sell] # earn\nprice = \"1 sat/GB\" # cheap\n";
        let (text, value) = set(text, "sell.price", "90 sat/GB").unwrap();
        assert_eq!(
            text,
            "# mine\nnetwork = \"signet\" # play\n\n[sell] # earn\nprice = \"90 sat/GB\" # cheap\n"
        );
        assert_eq!(value, Value::from("90000 msat/GB"));

        let (text, _) = set(&text, "sell.max_leases", "4").unwrap();
        let (text, _) = set(&text, "chain.bitcoind.url", "http://127.0.0.1:1").unwrap();
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.sell.max_leases, 4);
        assert_eq!(config.chain.bitcoind.url, "http://127.0.0.1:1");
        assert!(
            text.contains("[chain.bitcoind]") && !text.contains("[chain]\n"),
            "{text}"
        );
    }

    #[test]
    fn a_word_is_text_where_the_setting_is_text_and_a_list_may_be_written_with_commas() {
        let (text, _) = set("", "network", "regtest").unwrap();
        let (text, _) = set(&text, "buy.cell", "7").unwrap();
        let (text, _) = set(&text, "egress.allow", "127.0.0.1:1, 127.0.0.1:2").unwrap();
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.network, Network::Regtest);
        assert_eq!(config.buy.cell, "7");
        assert_eq!(config.egress.allow.len(), 2);
    }

    #[test]
    fn a_slip_is_answered_with_the_name_that_was_meant() {
        let Err(SettingError::Unknown { nearest, .. }) = set("", "sell.prise", "1 sat/GB") else {
            panic!("a setting that does not exist was taken");
        };
        assert_eq!(nearest.as_deref(), Some("sell.price"));
        let Err(SettingError::Unknown { nearest, .. }) = set("", "weather", "fine") else {
            panic!("a setting that does not exist was taken");
        };
        assert_eq!(nearest, None);
        assert!(matches!(
            set("", "sell", "1"),
            Err(SettingError::Section(_))
        ));
    }

    #[test]
    fn a_value_that_cannot_work_is_refused() {
        assert!(matches!(
            set("", "sell.price", "cheap"),
            Err(SettingError::Config(_))
        ));
        assert!(matches!(
            set("", "sell.max_leases", "many"),
            Err(SettingError::Config(_))
        ));
        assert!(matches!(
            set("", "sell.max_leases", "0"),
            Err(SettingError::Config(_))
        ));
    }

    #[test]
    fn settings_are_listed_by_section_with_their_origin() {
        let text = "[sell]\nprice = \"90 sat/GB\"\n";
        let config = Config::parse(text).unwrap();
        let sell = list(&config, text, Some("sell")).unwrap();
        assert!(sell.iter().all(|setting| setting.key.starts_with("sell.")));
        let origin = |key: &str| {
            sell.iter()
                .find(|setting| setting.key == key)
                .unwrap()
                .origin
        };
        assert_eq!(origin("sell.price"), Origin::File);
        assert_eq!(origin("sell.rate"), Origin::Default);
        assert_eq!(list(&config, text, Some("sell.price")).unwrap().len(), 1);
        assert!(list(&config, text, Some("sel")).is_err());
        assert!(list(&config, text, None).unwrap().len() > sell.len());
    }

    #[test]
    fn the_network_is_found_in_a_file_that_is_otherwise_bad() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(network(&path).unwrap(), None);
        write(&path, "network = \"signet\"\n[nonsense]\nx = 1\n").unwrap();
        assert_eq!(network(&path).unwrap(), Some(Network::Signet));
        write(&path, "network = \"moon\"\n").unwrap();
        assert!(network(&path).is_err());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no draft is left behind"
        );
    }

    #[test]
    fn distance_counts_letters() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
