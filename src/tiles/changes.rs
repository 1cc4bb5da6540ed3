//! What `/model`, `/system`, `/set` and `/think` changed for one conversation. While the drive is locked it waits in the
//! database, encrypted like what was said: nobody reads it over the shoulder of a locked screen, or in a list of processes.

use serde::{Deserialize, Serialize};
use tilekit::store::{Access, Store};

use crate::args::RunArguments;
use crate::failure::Failure;

/// The setting that holds it while the drive is locked.
const SETTING: &str = "conversation.changes";

/// What is changed; nothing at first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Changes {
    /// Another model: then nothing of what was typed when Tiles was started counts for it.
    pub(crate) model: Option<String>,
    /// Another system message.
    pub(crate) system: Option<String>,
    /// Parameters, as `NAME=VALUE`, in their order.
    pub(crate) set: Vec<String>,
    /// How hard the model thinks, as it is typed after `/think`.
    pub(crate) think: Option<String>,
}

impl Changes {
    /// Another model: what was changed for the last one doesn't count for it.
    pub(crate) fn of_model(name: String) -> Self {
        Self { model: Some(name), ..Self::default() }
    }

    /// Notes a parameter's new value.
    pub(crate) fn set(&mut self, assignment: String) {
        let name = |assignment: &str| assignment.split('=').next().map(str::to_owned);
        self.set.retain(|other| name(other) != name(&assignment));
        self.set.push(assignment);
    }

    /// What is run with these changes, where `typed` is what was typed when Tiles was started.
    pub(crate) fn over(&self, typed: &RunArguments) -> RunArguments {
        let mut run = match &self.model {
            Some(name) => RunArguments { model: Some(name.clone()), engine: typed.engine, ..RunArguments::default() },
            None => typed.clone(),
        };
        run.system = self.system.clone().or(run.system);
        run.set.extend(self.set.iter().cloned());
        run
    }

    /// Keeps them until the drive is unlocked again. Says whether they are kept: not where nothing can be.
    pub(crate) fn keep(&self, store: Option<&Store>) -> bool {
        let Some(store) = store.filter(|store| store.access() == Access::ReadWrite) else { return false };
        match serde_json::to_string(self) {
            Ok(text) => store.set_setting(SETTING, &text).is_ok(),
            Err(_) => false,
        }
    }

    /// Takes those that were kept.
    pub(crate) fn take(store: &Store) -> Result<Self, Failure> {
        let Some(text) = store.setting(SETTING)? else { return Ok(Self::default()) };
        if store.access() == Access::ReadWrite {
            store.remove_setting(SETTING)?;
        }
        // Another version's are as none.
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_go_over_what_was_typed_and_another_model_begins_anew() {
        let typed = RunArguments {
            model: Some("first".into()),
            set: vec!["temperature=1".into()],
            system: Some("Be long.".into()),
            ..RunArguments::default()
        };
        assert_eq!(Changes::default().over(&typed), typed);
        let mut changes = Changes { system: Some("Be brief.".into()), ..Changes::default() };
        for assignment in ["temperature=0", "seed=3", "temperature=0.5"] {
            changes.set(assignment.into());
        }
        let run = changes.over(&typed);
        assert_eq!(run.set, ["temperature=1", "seed=3", "temperature=0.5"]);
        assert_eq!((run.model.as_deref(), run.system.as_deref()), (Some("first"), Some("Be brief.")));
        let run = Changes::of_model("second".into()).over(&typed);
        assert_eq!(run, RunArguments { model: Some("second".into()), ..RunArguments::default() });
    }
}
