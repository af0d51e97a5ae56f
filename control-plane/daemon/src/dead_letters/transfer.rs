//! Export and import: dead letters as NDJSON, whole, so that nothing is lost on the way through a file.

use std::collections::BTreeSet;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::{DeadLetter, DeadLetterOutcome, DeadLetterQuery};
use rusqlite::params_from_iter;
use serde_json::json;
use tokio::sync::mpsc;

use super::DeadLetters;
use super::fingerprint::digest;
use super::letters;
use super::sql::Where;
use super::take_in::{self, Letter, Place};
use crate::audit::{self, Deed};
use crate::operate::Asked;

/// Letters that are read or written at once.
const PAGE: usize = 32;

/// Letters on their way to a reader.
const IN_FLIGHT: usize = 32;

impl DeadLetters {
    /// The selected letters, oldest first, as they are when their turn comes; those that are gone by then are left out. An error is the last that comes:
    /// the export is not whole then.
    ///
    /// # Errors
    /// When the filter is none, or the store cannot be read at all.
    pub async fn export(
        &self,
        query: DeadLetterQuery,
    ) -> Result<mpsc::Receiver<Result<DeadLetter, ApiError>>, ApiError> {
        let wanted = Where::of(&query, Timestamp::now())?;
        let select = self.store.read("select dead letters", move |from| {
            let mut statement =
                from.prepare_cached(&format!("SELECT number FROM letters WHERE {} ORDER BY number", wanted.sql))?;
            let rows = statement.query_map(params_from_iter(&wanted.values), |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<i64>>>()?)
        });
        let numbers = select.await?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let store = self.store.clone();
        tokio::spawn(async move {
            for page in numbers.chunks(PAGE) {
                let page = page.to_vec();
                let read = store.read("export dead letters", move |from| {
                    let letters = page.into_iter().filter_map(|number| letters::whole(from, number).transpose());
                    letters.collect::<Result<Vec<_>, _>>()
                });
                let letters = match read.await {
                    Ok(letters) => letters,
                    Err(why) => {
                        tracing::error!(%why, "an export broke off");
                        // A reader that has gone misses nothing.
                        let _ = sender.send(Err(why)).await;
                        return;
                    }
                };
                for letter in letters {
                    if sender.send(Ok(letter)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }

    /// What comes from an export, line by line; a dry run only counts what would be added.
    pub fn import(&self, asked: Asked, dry_run: bool) -> Import {
        Import { into: self.clone(), asked, dry_run, page: Vec::new(), ids: BTreeSet::new(), lines: 0, added: 0 }
    }
}

/// An import under way. Written a page at a time: one that breaks off can be done again from the beginning.
pub struct Import {
    into: DeadLetters,
    asked: Asked,
    dry_run: bool,
    page: Vec<(Place, Letter)>,
    ids: BTreeSet<String>,
    lines: u64,
    /// Or would be.
    added: u64,
}

impl Import {
    /// One line; an empty one is overlooked.
    ///
    /// # Errors
    /// When it is no dead letter, or cannot be written.
    pub async fn line(&mut self, line: &[u8]) -> Result<(), ApiError> {
        self.lines += 1;
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let read = serde_json::from_slice::<DeadLetter>(line)
            .map_err(|why| ApiError::new(ErrorCode::Invalid, format!("it is not a dead letter: {why}")))
            .and_then(Letter::exported);
        let (place, letter) = read.map_err(|mut why| {
            why.message = format!("cannot import line {}: {}", self.lines, why.message);
            why.hint.get_or_insert_with(|| {
                "the lines before it may be imported already; with it corrected, import the whole again".into()
            });
            why
        })?;
        if self.ids.insert(letter.id(&place)) {
            self.page.push((place, letter));
        }
        if self.page.len() < PAGE { Ok(()) } else { self.write().await }
    }

    /// Writes what is left, and audits what it came to as a whole. When it fails, [`Self::failed`] is next.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn finish(&mut self) -> Result<DeadLetterOutcome, ApiError> {
        self.write().await?;
        let fingerprint = digest(self.ids.iter().map(String::as_str));
        let outcome = DeadLetterOutcome {
            action: "import".into(),
            fingerprint: fingerprint.clone(),
            selected: self.ids.len() as u64,
            changed: self.added,
            dry_run: self.dry_run,
        };
        if self.dry_run {
            return Ok(outcome);
        }
        let data = json!({"count": self.ids.len(), "added": self.added, "fingerprint": fingerprint});
        let deed = Deed::done(&self.asked, "deadletter.import", format!("{} dead letters", self.ids.len()), data);
        let write = self.into.store.write("write the audit", move |to| audit::write(to, &deed, Timestamp::now()));
        write.await?;
        Ok(outcome)
    }

    /// Audits why it came to nothing, or only to a part.
    pub async fn failed(&self, why: &ApiError) {
        if self.dry_run {
            return;
        }
        let mut deed = Deed::refused(&self.asked, "deadletter.import", format!("{} lines", self.lines), why);
        deed.data = json!({"added": self.added});
        let write = self.into.store.write("write the audit", move |to| audit::write(to, &deed, Timestamp::now()));
        if let Err(unwritten) = write.await {
            tracing::error!(%unwritten, "a failed import could not be audited");
        }
    }

    async fn write(&mut self) -> Result<(), ApiError> {
        let page = std::mem::take(&mut self.page);
        self.added += if self.dry_run {
            self.into.store.read("look for dead letters", move |from| take_in::unknown(from, &page)).await?
        } else {
            let asked = self.asked.clone();
            let write = self.into.store.write("import dead letters", move |to| {
                let added = take_in::import(to, &page)?;
                if added > 0 {
                    let data = json!({"count": page.len(), "added": added});
                    let subject = format!("{} dead letters of an import", page.len());
                    audit::write(to, &Deed::done(&asked, "deadletter.import", subject, data), Timestamp::now())?;
                }
                Ok(added)
            });
            write.await?
        };
        Ok(())
    }
}
