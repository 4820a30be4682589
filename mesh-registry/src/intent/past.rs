//! Objects as they were: reading what was written, and writing it again.

use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{Key, Resource};

use super::{Author, Intents, WriteError, Written};
use crate::history::{self, Past, What};

impl Intents<'_> {
    /// What was written to an object, the newest first; of one that is gone as well.
    pub fn history(&self, key: &Key) -> Result<Vec<Past>, WriteError> {
        let mut all = history::of(self.store, key)?;
        all.reverse();
        if all.is_empty() {
            return Err(key.not_found().into());
        }
        Ok(all)
    }

    /// Writes an object as it was after revision `to`; with `expect`, only over that revision of it.
    pub fn roll_back(
        &self,
        author: &Author<'_>,
        key: &Key,
        to: u64,
        expect: Option<u64>,
    ) -> Result<Written, WriteError> {
        let all = self.history(key)?;
        let Some(past) = all.iter().find(|past| past.revision == to) else {
            let known: Vec<String> = all.iter().map(|past| past.revision.to_string()).collect();
            let accepted = format!("one of {}", known.join(", "));
            let message =
                format!("{key} was not written at revision {to}, or that is forgotten; accepted: {accepted}");
            let error = ApiError::new(Reason::NotFound, "revision", to.into(), accepted).saying(message);
            return Err(error.into());
        };
        let Some(object) = &past.object else {
            let why = if past.what == What::Deleted {
                format!(
                    "{key} was removed at revision {to}: to have it so, remove it; to have it back, name an earlier revision"
                )
            } else {
                format!("{key} was too large at revision {to} to be kept: apply it from its file")
            };
            let error = ApiError::new(Reason::Conflict, "revision", to.into(), "a revision with an object");
            return Err(error.saying(why).into());
        };
        let resource = Resource::parse(object).map_err(|error| {
            let why = format!("{key} of revision {to} is not accepted any more: {error}");
            error.saying(why)
        })?;
        self.put_as(author, &resource, expect, Some(What::RolledBack(to)))
    }
}
