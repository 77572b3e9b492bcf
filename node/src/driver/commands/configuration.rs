//! Settings: read, written, and taken over while the node runs.

use super::super::Driver;
use super::super::selling::Phase;
use super::Outcome;
use crate::config::Config;
use crate::control::api;
use crate::control::{ApiError, ErrorCode};
use crate::mesh;
use crate::protocol::Topic;
use crate::settings::{self, SettingError};

impl Driver {
    pub(super) fn config_text(&self) -> Result<String, ApiError> {
        settings::read(&self.config_file).map_err(|error| ApiError::failure(error.to_string()))
    }

    pub(super) fn get_config(&self, key: Option<&str>) -> Outcome {
        let text = self.config_text()?;
        // As the file says: what needs a restart is not in force yet.
        let written = Config::parse(&text).unwrap_or_else(|_| self.config.clone());
        let values = settings::list(&written, &text, key).map_err(setting_error)?;
        let values = values.into_iter().map(|setting| api::ConfigValue {
            key: setting.key,
            value: json(&setting.value),
            origin: setting.origin.as_str().to_owned(),
        });
        let file = self.config_file.display().to_string();
        Ok(api::ConfigValues {
            file,
            values: values.collect(),
        }
        .into())
    }

    pub(super) fn set_config(&mut self, wanted: &api::SetConfig) -> Outcome {
        let value = self.write_settings(&[(&wanted.key, wanted.value.clone())])?;
        let config = self.config_on_disk()?;
        let restart_needed = !self.apply_live(&config);
        Ok(api::ConfigChange {
            key: wanted.key.clone(),
            value: json(&value),
            file: self.config_file.display().to_string(),
            restart_needed,
        }
        .into())
    }

    pub(super) fn config_on_disk(&self) -> Result<Config, ApiError> {
        let text = self.config_text()?;
        Config::parse(&text).map_err(|error| ApiError::failure(error.to_string()))
    }

    /// Writes settings to the file, all or none. Returns the last one's value.
    pub(super) fn write_settings(
        &self,
        changes: &[(&str, String)],
    ) -> Result<toml::Value, ApiError> {
        let mut text = self.config_text()?;
        let mut value = toml::Value::Boolean(true);
        for (key, new) in changes {
            (text, value) = settings::set(&text, key, new).map_err(setting_error)?;
        }
        settings::write(&self.config_file, &text).map_err(|error| {
            ApiError::failure(format!(
                "cannot write {}: {error}",
                self.config_file.display()
            ))
        })?;
        Ok(value)
    }

    /// Takes over what can change while running. Returns whether that is all that changed.
    pub(super) fn apply_live(&mut self, changed: &Config) -> bool {
        let mut live = self.config.clone();
        live.sell = changed.sell.clone();
        live.buy = changed.buy.clone();
        let is_all = live == *changed;
        let topics = self.topics();
        let was = std::mem::replace(&mut self.config, live);
        self.follow_topics(&topics);
        if was.sell != self.config.sell {
            self.outlet.set_total_rate(self.config.sell.total_rate);
            if was.sell.enabled != self.config.sell.enabled {
                self.selling.phase = match self.config.sell.enabled {
                    true => Phase::Offering,
                    false => Phase::Stopped,
                };
            }
            self.supply();
        }
        is_all
    }

    /// Leaves the topics of cells and regions that are no longer this node's, and joins the new ones.
    pub(super) fn follow_topics(&mut self, before: &[Topic]) {
        let now = self.topics();
        for topic in before.iter().filter(|topic| !now.contains(topic)) {
            self.mesh_do(mesh::Command::Unsubscribe(topic.clone()));
            self.mesh_do(mesh::Command::StopProviding(topic.cell.clone()));
        }
        for topic in now.into_iter().filter(|topic| !before.contains(topic)) {
            self.mesh_do(mesh::Command::Subscribe(topic.clone()));
            self.mesh_do(mesh::Command::Provide(topic.cell.clone()));
            self.mesh_do(mesh::Command::FindProviders(topic.cell));
        }
    }
}

fn setting_error(error: SettingError) -> ApiError {
    let code = match &error {
        SettingError::Write(_) => ErrorCode::Failure,
        SettingError::Unknown { .. } => ErrorCode::NotFound,
        SettingError::Section(_) | SettingError::Config(_) => ErrorCode::Usage,
    };
    ApiError::new(
        code,
        error.to_string(),
        "\"bitmesh config get\" lists them; nothing was changed",
    )
}

fn json(value: &toml::Value) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or(serde_json::Value::Null)
}
