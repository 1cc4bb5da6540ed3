//! Search in everything that was said. Any text is a legal query: it is quoted, never a query language.
//!
//! Words are found through the full-text index (without regard to case and accents, the last word as a beginning).
//! What that index can't find, symbols and scripts without spaces between words, is searched for in the texts.

use std::cmp::Reverse;
use std::ops::Range;

use rusqlite::types::Value;
use rusqlite::{Row, params_from_iter};

use super::error::{StoreError, Trouble};
use super::{Store, check_length, row, turns};
use crate::message::{MessageId, Role, SessionId};
use crate::time::Timestamp;
use crate::transcript::{MESSAGE_BYTES_MAX, TITLE_BYTES_MAX};

/// The longest query, in bytes.
pub const QUERY_BYTES_MAX: usize = 1024;
/// The most words of a query.
const QUERY_WORDS_MAX: usize = 32;
/// The most hits of one search.
const HITS_MAX: usize = 1000;
/// About how long a snippet is, in words of the index.
const SNIPPET_WORDS: u32 = 24;
/// How much of the text a snippet shows around a place found without the index, in characters to each side.
const SNIPPET_CHARS: usize = 60;
/// What the index puts around matches: characters that a text for people doesn't have.
const MARK_START: char = '\u{1}';
const MARK_END: char = '\u{2}';

/// A message in which the query was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchHit {
    /// The session it belongs to.
    pub session: SessionId,
    /// What the person calls that session.
    pub title: Option<String>,
    /// Its name.
    pub message: MessageId,
    /// Who said it.
    pub role: Role,
    /// The part of it where the query was found.
    pub snippet: String,
    /// Where in the snippet, in bytes, in order.
    pub matches: Vec<Range<usize>>,
    /// When it was stored.
    pub created_at: Timestamp,
}

impl Store {
    /// Searches for messages that have every word of `text`, newest first, `limit` at most. Instructions to the model
    /// (the system role) and reasoning aren't searched.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for a query that is too long, and what reading can meet.
    pub fn search(&self, text: &str, limit: usize) -> Result<Vec<SearchHit>, StoreError> {
        let query = Query::new(text)?;
        if query.indexed.is_none() && query.literal.is_empty() {
            return Ok(Vec::new());
        }
        // What is looked for in the texts alone needs no index.
        let indexes = if query.indexed.is_some() { self.text_indexes()? } else { &[""] };
        self.read(|connection| {
            let limit = limit.min(HITS_MAX);
            let mut hits = Vec::new();
            for index in indexes {
                let mut parameters: Vec<Value> = vec![Value::Integer(limit as i64)];
                let sql = query.sql(index, &mut parameters);
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query(params_from_iter(parameters))?;
                while let Some(found) = rows.next()? {
                    hits.push((row::number(found, 6)?, query.hit(found)?));
                }
            }
            hits.sort_by_key(|(seq, _)| Reverse(*seq));
            hits.truncate(limit);
            Ok(hits.into_iter().map(|(_, hit)| hit).collect())
        })
    }
}

/// What is asked of the index, and what is looked for in the texts.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    indexed: Option<String>,
    literal: Vec<String>,
}

impl Query {
    fn new(text: &str) -> Result<Self, StoreError> {
        check_length("the query", text, QUERY_BYTES_MAX)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.len() > QUERY_WORDS_MAX {
            let (what, unit, count) = ("the query", "words", words.len());
            return Err(StoreError::TooLarge { what, count, count_max: QUERY_WORDS_MAX, unit });
        }
        let (indexed, literal): (Vec<&str>, Vec<&str>) = words.iter().copied().partition(|word| is_indexed(word));
        let last = words.last().copied();
        let mut phrases: Vec<String> = indexed.iter().map(|word| quote(word)).collect();
        // What is being typed is the beginning of a word.
        if let (Some(phrase), true) = (phrases.last_mut(), indexed.last().copied() == last) {
            phrase.push_str(" *");
        }
        let indexed = (!phrases.is_empty()).then(|| phrases.join(" AND "));
        Ok(Self { indexed, literal: literal.into_iter().map(Into::into).collect() })
    }

    /// The statement over one index; its parameters are appended to those that are there.
    fn sql(&self, index: &str, parameters: &mut Vec<Value>) -> String {
        let mut parameter = |value: Value| {
            parameters.push(value);
            format!("?{}", parameters.len())
        };
        let mut conditions = vec!["m.role <> 'system'".to_owned()];
        let (shown, from, order) = match &self.indexed {
            Some(phrases) => {
                conditions.push(format!("{index} MATCH {}", parameter(phrases.clone().into())));
                let start = parameter(MARK_START.to_string().into());
                let end = parameter(MARK_END.to_string().into());
                let shown = format!("snippet({index}, 0, {start}, {end}, '…', {SNIPPET_WORDS})");
                (shown, format!("{index} JOIN message AS m ON m.seq = {index}.rowid"), format!("{index}.rowid"))
            }
            None => ("m.content".into(), "message AS m".into(), "m.seq".into()),
        };
        for word in &self.literal {
            conditions.push(format!("instr(m.content, {}) > 0", parameter(word.clone().into())));
        }
        format!(
            "SELECT s.id, s.title, m.id, m.role, m.created_at, {shown}, m.seq
             FROM {from} JOIN session AS s ON s.seq = m.session
             WHERE {} ORDER BY {order} DESC LIMIT ?1",
            conditions.join(" AND ")
        )
    }

    fn hit(&self, found: &Row<'_>) -> Result<SearchHit, Trouble> {
        // A snippet is a part of the content, and at most three bytes a mark and an ellipsis longer.
        let shown = row::text(found, 5, 2 * MESSAGE_BYTES_MAX)?;
        let (snippet, mut matches) = match self.indexed {
            Some(_) => without_marks(&shown),
            None => (around(&shown, &self.literal), Vec::new()),
        };
        for word in &self.literal {
            matches.extend(snippet.match_indices(word.as_str()).map(|(start, word)| start..start + word.len()));
        }
        Ok(SearchHit {
            session: SessionId(row::id(found, 0)?),
            title: row::optional_text(found, 1, TITLE_BYTES_MAX)?,
            message: MessageId(row::id(found, 2)?),
            role: turns::role(found, 3)?,
            created_at: row::moment(found, 4)?,
            snippet,
            matches: merged(matches),
        })
    }
}

/// Whether the index finds the word: it has letters or digits, and none of a script without spaces between words, whose
/// sentences the index takes for one word.
fn is_indexed(word: &str) -> bool {
    let unspaced = |c: char| {
        matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
            | '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ff66}'..='\u{ff9f}' | '\u{20000}'..='\u{3ffff}')
    };
    let symbol = |c: char| c as u32 >= 0x80 && !c.is_alphanumeric();
    word.chars().any(char::is_alphanumeric) && !word.chars().any(|c| unspaced(c) || symbol(c))
}

/// The word as a string of the query language, in which nothing has a meaning. It can't hold a NUL.
fn quote(word: &str) -> String {
    format!("\"{}\"", word.replace('"', "\"\"").replace('\0', " "))
}

/// The snippet without its marks, and the ranges between them in bytes.
fn without_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut snippet = String::with_capacity(marked.len());
    let (mut matches, mut start) = (Vec::new(), None);
    for c in marked.chars() {
        match c {
            MARK_START => start = Some(snippet.len()),
            MARK_END => matches.extend(start.take().map(|start| start..snippet.len())),
            _ => snippet.push(c),
        }
    }
    (snippet, matches)
}

/// The part of `content` around the first place of any of `words`.
fn around(content: &str, words: &[String]) -> String {
    let place = words
        .iter()
        .filter_map(|word| content.find(word.as_str()).map(|at| at..at + word.len()))
        .min_by_key(|range| range.start);
    let Range { start, end } = place.unwrap_or(0..0);
    let (before, rest) = content.split_at(start);
    let (found, after) = rest.split_at(end - start);
    let from = before.char_indices().rev().nth(SNIPPET_CHARS - 1).map_or(0, |(at, _)| at);
    let to = after.char_indices().nth(SNIPPET_CHARS).map_or(after.len(), |(at, _)| at);
    let dots = |cut| if cut { "…" } else { "" };
    format!("{}{}{found}{}{}", dots(from > 0), &before[from..], &after[..to], dots(to < after.len()))
}

/// The ranges in order, those that touch made one.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
