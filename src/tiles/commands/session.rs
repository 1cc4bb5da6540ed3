//! `tiles session`: the kept conversations.

use serde_json::{Value, json};
use tilekit::disk;
use tilekit::prefix_cache::PrefixCache;
use tilekit::store::{SearchHit, SessionSummary, Store};
use tilekit::transcript::{self, TRANSCRIPTS_BYTES_MAX};

use crate::app::App;
use crate::args::{ExportFormat, OnboardingArguments, SessionCommand};
use crate::failure::{Code, Failure};
use crate::terminal::Stream;
use crate::terminal::escape::{neutralise, neutralise_line};
use crate::terminal::style::paint;

/// How many hits of a search are shown.
const HITS_MAX: usize = 50;
/// How much of an identifier is shown in lists; any unique beginning names the session.
const SHORT_ID: usize = 8;

/// Runs it.
pub(crate) fn run(app: &App, command: SessionCommand) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    let open = app.unlock(&bundle, &OnboardingArguments::default())?;
    let done = act(app, command, &open.store, &open.prefix_cache(&bundle));
    done.and(open.close())
}

fn act(app: &App, command: SessionCommand, store: &Store, states: &PrefixCache) -> Result<(), Failure> {
    match command {
        SessionCommand::List => {
            let sessions = store.list()?;
            app.print(&json!(sessions.iter().map(summary_json).collect::<Vec<_>>()), || list_text(&sessions))
        }
        SessionCommand::Show { id } => {
            let shown = store.export(store.find(&id)?)?;
            let json = as_value(&transcript::to_json(std::slice::from_ref(&shown)));
            app.print(&json, || neutralise(&transcript::to_markdown(&shown)).into_owned())
        }
        SessionCommand::Search { text } => {
            let hits = store.search(&text.join(" "), HITS_MAX)?;
            let rows: Vec<Value> = hits
                .iter()
                .map(|hit| {
                    json!({ "session": hit.session.to_string(), "title": hit.title, "role": hit.role.as_str(),
                            "message": hit.message.to_string(), "snippet": hit.snippet,
                            "created_at": hit.created_at.to_string() })
                })
                .collect();
            app.print(&json!(rows), || hits_text(app, &hits))
        }
        SessionCommand::Rename { id, title } => {
            let session = store.find(&id)?;
            store.rename(session, &title, app.clock.now())?;
            app.print(&json!({ "session": session.to_string(), "title": title }), || {
                format!("{} is called {} now", short(&session.to_string()), neutralise_line(&title))
            })
        }
        SessionCommand::Delete { id, yes, dry_run } => {
            let session = store.summary(store.find(&id)?)?;
            let title = neutralise_line(session.title.as_deref().unwrap_or("(no title)")).into_owned();
            let what = format!("{} ({title}, {} messages)", short(&session.id.to_string()), session.messages);
            if dry_run {
                return app
                    .print(&json!({ "would_delete": session.id.to_string() }), || format!("would delete {what}"));
            }
            app.confirm(&format!("Delete {what}? It can't be brought back."), yes)?;
            store.delete(session.id)?;
            states.forget_session(session.id)?;
            app.print(&json!({ "deleted": session.id.to_string() }), || format!("deleted {what}"))
        }
        SessionCommand::Export { id, format } => {
            let ids = match id {
                Some(id) => vec![store.find(&id)?],
                None => store.list()?.into_iter().map(|session| session.id).collect(),
            };
            let transcripts = ids.into_iter().map(|id| store.export(id)).collect::<Result<Vec<_>, _>>()?;
            let text = match format {
                ExportFormat::Json => transcript::to_json(&transcripts),
                ExportFormat::Md => transcripts.iter().map(transcript::to_markdown).collect::<Vec<_>>().join("\n\n"),
            };
            // A program gets what was said; a terminal isn't steered by it.
            let text = if app.terminal.is_terminal(Stream::Out) { neutralise(&text) } else { text.into() };
            Ok(app.terminal.out(&format!("{}\n", text.trim_end()))?)
        }
        SessionCommand::Import { file, dry_run } => {
            let bytes = match file.as_os_str() == "-" {
                true => app.read_input(TRANSCRIPTS_BYTES_MAX)?,
                false => disk::read_stream(&file, TRANSCRIPTS_BYTES_MAX)?,
            };
            let text = String::from_utf8(bytes).map_err(|_| {
                Failure::new(Code::Failure, "the file isn't UTF-8 text", "give a file of `session export`")
            })?;
            let transcripts = transcript::parse_json(&text)?;
            if !dry_run {
                store.import(&transcripts)?;
            }
            let count = transcripts.len();
            let verb = if dry_run { "would import" } else { "imported" };
            app.print(&json!({ "sessions": count, "dry_run": dry_run }), || format!("{verb} {count} sessions"))
        }
    }
}

/// The JSON that the library printed, as a value to print again.
fn as_value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

fn short(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}

fn summary_json(session: &SessionSummary) -> Value {
    json!({ "id": session.id.to_string(), "title": session.title, "model": session.model, "messages": session.messages,
            "created_at": session.created_at.to_string(), "updated_at": session.updated_at.to_string() })
}

/// The sessions for people, the latest first.
pub(crate) fn list_text(sessions: &[SessionSummary]) -> String {
    let rows = sessions.iter().map(|session| {
        let title = neutralise_line(session.title.as_deref().unwrap_or("(no title)")).into_owned();
        let id = session.id.to_string();
        format!("{}  {}  {:>4} messages  {title}\n", short(&id), session.updated_at, session.messages)
    });
    rows.collect()
}

/// Search hits for people, the matches marked.
pub(crate) fn hits_text(app: &App, hits: &[SearchHit]) -> String {
    let bold = app.terminal.styles(Stream::Out).bold;
    let mut text = String::new();
    for hit in hits {
        let (mut snippet, mut at) = (String::new(), 0);
        for found in &hit.matches {
            let (before, word) = (hit.snippet.get(at..found.start), hit.snippet.get(found.clone()));
            snippet.push_str(&neutralise_line(before.unwrap_or_default()));
            snippet.push_str(&paint(bold, &neutralise_line(word.unwrap_or_default())));
            at = found.end;
        }
        snippet.push_str(&neutralise_line(hit.snippet.get(at..).unwrap_or_default()));
        let id = hit.session.to_string();
        text.push_str(&format!("{}  {}  {snippet}\n", short(&id), hit.role));
    }
    text
}
