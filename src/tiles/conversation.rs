//! What a conversation is made of: model, Modelfile, flags, engine; and how a reply reaches the screen.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tilekit::bundle::{Bundle, Verified};
use tilekit::chat::Setup;
use tilekit::disk;
use tilekit::engine::backend::BackendChoice;
use tilekit::engine::grammar::GRAMMAR_BYTES_MAX;
use tilekit::engine::models::{AdapterFiles, LoadOptions, Model};
use tilekit::engine::worker::{LoadState, Worker};
use tilekit::engine::{Completion, Engine, EngineOptions, Grammar, Piece};
use tilekit::host::Host;
use tilekit::library::{Library, LibraryError, ModelEntry};
use tilekit::mir::Mir;
use tilekit::modelfile::{MODELFILE_BYTES_MAX, Modelfile, Parsed, Source};
use tilekit::sampling::{Effect, Parameters};
use tilekit::verified::VerifiedFolder;

use crate::app::App;
use crate::args::{EngineChoice, RunArguments};
use crate::changes::Changes;
use crate::failure::{Code, Failure};
use crate::repl::markdown::code::Syntaxes;
use crate::repl::markdown::{Markdown, Mode};
use crate::repl::slash;
use crate::repl::thoughts::Thoughts;
use crate::terminal::Stream;
use crate::terminal::progress::Progress;

/// What `tiles run` resolved: where the weights are and how the model is asked.
pub(crate) struct Resolved {
    pub(crate) folder: VerifiedFolder,
    /// What is added to the weights.
    pub(crate) adapter: Option<AdapterFiles>,
    pub(crate) setup: Setup,
    /// The Modelfile in force.
    pub(crate) modelfile: Modelfile,
    /// What shall compute.
    pub(crate) backend: BackendChoice,
    /// What of it was changed for this conversation.
    pub(crate) changes: Changes,
}

/// What a Modelfile comes to: the model's name, its weights, and what is added to them.
struct Found {
    name: String,
    folder: VerifiedFolder,
    adapter: Option<AdapterFiles>,
    modelfile: Modelfile,
}

impl App {
    /// Resolves MODEL and the flags; `Ok(None)` where the model may be one that only an unlocked bundle knows.
    pub(crate) fn resolve(&self, library: &Library, run: &RunArguments) -> Result<Resolved, Failure> {
        let changes = (*run.changes).clone();
        let run = &changes.over(run);
        let backend = match run.engine {
            EngineChoice::Auto => BackendChoice::Auto,
            EngineChoice::Cpu => BackendChoice::Cpu,
            EngineChoice::Mlx => BackendChoice::Mlx,
        };
        if backend == BackendChoice::Mlx {
            backend.resolve()?;
        }
        let Found { name, folder, adapter, modelfile } = match run.model.as_deref() {
            None => self.resolve_default(library)?,
            Some(path) if is_path(path) => self.resolve_modelfile(library, Path::new(path))?,
            Some(mir) if mir.starts_with("mir:") => resolve_name(library, &resolve_mir(library, mir)?)?,
            Some(name) => resolve_name(library, name)?,
        };
        let mut parameters = modelfile.parameters().clone();
        for assignment in &run.set {
            self.set(&mut parameters, assignment)?;
        }
        if run.seed.is_some() {
            parameters.sampling.seed = run.seed;
        }
        let setup = Setup {
            model: name,
            system: run.system.clone().or_else(|| modelfile.system().map(Into::into)),
            examples: modelfile.messages(),
            parameters,
            template: modelfile.template(),
            think: changes.think.as_deref().and_then(slash::think),
            parser: modelfile.parser(),
            grammar: run.schema.as_deref().map(read_schema).transpose()?,
        };
        Ok(Resolved { folder, adapter, setup, modelfile, backend, changes })
    }

    /// The model that came with the bundle, or the only one there is.
    fn resolve_default(&self, library: &Library) -> Result<Found, Failure> {
        let models = library.list();
        let first = models.iter().find(|model| model.is_shipped).or(models.first());
        match first {
            Some(model) => resolve_name(library, &model.name),
            None => {
                Err(Failure::new(Code::Model, "this bundle has no model", "add one with `tiles model import PATH`"))
            }
        }
    }

    fn resolve_modelfile(&self, library: &Library, path: &Path) -> Result<Found, Failure> {
        let parsed = Modelfile::from_bytes(&disk::read(path, MODELFILE_BYTES_MAX as u64)?)?;
        let modelfile = self.warned(parsed);
        modelfile.check_requires(env!("CARGO_PKG_VERSION"))?;
        let beside = path.parent().unwrap_or(Path::new("."));
        let (name, folder) = match modelfile.from() {
            Source::Name(name) => (name.clone(), library.find(name)?.folder()),
            Source::Mir(mir) => {
                let name = resolve_mir(library, mir)?;
                let folder = library.find(&name)?.folder();
                (name, folder)
            }
            Source::Hub { org, name } => {
                let source = format!("{org}/{name}");
                let models = library.list();
                let found = models.iter().find(|m| m.description.as_ref().is_some_and(|d| d.source == source));
                let Some(found) = found else { return Err(absent(&source)) };
                (found.name.clone(), library.find(&found.name)?.folder())
            }
            Source::Path(from) => {
                let folder = beside.join(from);
                if !disk::is_folder(&folder) {
                    return Err(if disk::exists(&folder) { not_imported(&folder) } else { absent(from) });
                }
                match listed(library, &folder)? {
                    Some(model) => (model.name().to_owned(), model.folder()),
                    None => {
                        self.terminal.warn("this model is used where it lies, and nothing vouches for its files");
                        (from.clone(), VerifiedFolder::unlisted(&folder))
                    }
                }
            }
        };
        let adapter = modelfile.adapter().map(|path| self.resolve_adapter(library, beside, path)).transpose()?;
        Ok(Found { name, folder, adapter, modelfile })
    }

    /// The adapter that a Modelfile in the folder `beside` names: verified where it lies in the folder of a model of the
    /// bundle, else used where it lies.
    fn resolve_adapter(&self, library: &Library, beside: &Path, path: &str) -> Result<AdapterFiles, Failure> {
        let target = beside.join(path);
        if !disk::exists(&target) {
            let hint = "correct the path, which is relative to the Modelfile, or remove the line";
            return Err(Failure::new(Code::Model, format!("the adapter `{path}` isn't there"), hint));
        }
        let (folder, file) = match target.file_name() {
            Some(name) if !disk::is_folder(&target) => {
                (target.parent().unwrap_or(Path::new(".")), name.to_string_lossy().into_owned())
            }
            _ => (target.as_path(), String::new()),
        };
        if !file.is_empty() && !file.to_ascii_lowercase().ends_with(".safetensors") {
            let hint = "name an adapter's folder, or the `.safetensors` file in it";
            return Err(Failure::new(Code::Model, format!("`{path}` isn't an adapter"), hint));
        }
        Ok(match listed(library, folder)? {
            Some(model) => AdapterFiles::new(model.folder(), &file),
            None => {
                self.terminal.warn("this adapter is used where it lies, and nothing vouches for its files");
                AdapterFiles::new(VerifiedFolder::unlisted(folder), &file)
            }
        })
    }

    /// Prints a Modelfile's warnings.
    pub(crate) fn warned(&self, parsed: Parsed) -> Modelfile {
        parsed.warnings.iter().for_each(|warning| self.terminal.warn(&warning.to_string()));
        parsed.modelfile
    }

    /// Sets a parameter from `NAME=VALUE`.
    pub(crate) fn set(&self, parameters: &mut Parameters, assignment: &str) -> Result<(), Failure> {
        match parameters.set_assignment(assignment) {
            Ok(Effect::Acts) => Ok(()),
            Ok(Effect::NoEffectHere { warning, .. }) => {
                self.terminal.warn(&warning.to_string());
                Ok(())
            }
            Err(error) => Err(Failure::from(error).with_code(Code::Usage)),
        }
    }

    /// Starts loading the model in a thread of its own, once it is known to fit into this machine.
    pub(crate) fn start_engine(&self, resolved: &Resolved) -> Result<Worker, Failure> {
        let host = Host::probe()?;
        let load = LoadOptions {
            backend: resolved.backend,
            num_ctx: resolved.setup.parameters.num_ctx.unwrap_or(0),
            num_batch: resolved.setup.parameters.num_batch,
            threads: Some(resolved.setup.parameters.num_thread.unwrap_or(host.physical_cores)),
            adapter: resolved.adapter.clone(),
            ..LoadOptions::default()
        };
        host.fits(Model::memory_bytes(&resolved.folder, &load)?)?;
        let options = EngineOptions { load, clock: Arc::clone(&self.clock) };
        let folder = resolved.folder.clone();
        Ok(Worker::spawn(move |progress| {
            assert!(!Self::shall_break("engine"), "a defect in the engine's thread");
            Engine::load(&folder, &options, progress)
        }))
    }

    /// Shows how far loading is, until it ends or Ctrl-C is pressed.
    pub(crate) fn wait_for_engine(&self, worker: &Worker) {
        let mut bar = None;
        loop {
            let status = worker.load_progress();
            if status.state != LoadState::Loading || self.is_interrupted() {
                return;
            }
            if status.bytes_total > 0 {
                match &bar {
                    Some(bar) => Progress::set(bar, status.bytes_read),
                    None => {
                        let new = self.terminal.progress("Loading and verifying", status.bytes_total);
                        // What was read while the person typed took longer than this line has been there.
                        new.begin_at(status.bytes_read);
                        bar = Some(new);
                    }
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn read_schema(path: &Path) -> Result<Grammar, Failure> {
    let text = disk::read_text(path, GRAMMAR_BYTES_MAX)?;
    Grammar::from_json_schema(&text).map_err(|error| Failure::from(error).with_code(Code::Usage))
}

/// Whether MODEL is the path of a Modelfile rather than a model's name.
fn is_path(model: &str) -> bool {
    model.contains(['/', '\\'])
        || model == "Modelfile"
        || model.ends_with(".Modelfile")
        || model.ends_with(".modelfile")
}

/// The name of the model that has this identity by its own Modelfile.
fn resolve_mir(library: &Library, wanted: &str) -> Result<String, Failure> {
    let wanted: Mir = wanted.parse()?;
    let mut known: BTreeMap<Mir, String> = BTreeMap::new();
    for summary in library.list() {
        let Some(text) = library.find(&summary.name)?.modelfile()? else { continue };
        // What a model's own file has wrong is told where that model is run.
        let mir = Modelfile::parse(&text).ok().and_then(|parsed| parsed.modelfile.mir().cloned());
        if let Some(mir) = mir {
            known.entry(mir).or_insert(summary.name);
        }
    }
    let found = wanted.resolve(known.keys())?;
    Ok(known[found].clone())
}

fn resolve_name(library: &Library, name: &str) -> Result<Found, Failure> {
    let model = library.find(name)?;
    let text = match model.modelfile()? {
        Some(text) => text,
        None => format!("FROM {name}\n"),
    };
    let parsed = Modelfile::parse(&text)?;
    parsed.modelfile.check_requires(env!("CARGO_PKG_VERSION"))?;
    // Of a model of the bundle, only files of its own list count, its adapter's too.
    let adapter = parsed.modelfile.adapter().map(|path| AdapterFiles::new(model.folder(), path));
    Ok(Found { name: name.into(), folder: model.folder(), adapter, modelfile: parsed.modelfile })
}

/// The model of the bundle whose folder this is: then its files are verified, by whichever path it was named.
fn listed<'a>(library: &'a Library, folder: &Path) -> Result<Option<&'a ModelEntry>, Failure> {
    let folder = disk::canonical(folder)?;
    for summary in library.list() {
        let model = library.find(&summary.name)?;
        if disk::canonical(model.path()).is_ok_and(|path| path == folder) {
            return Ok(Some(model));
        }
    }
    // One that was added is used unverified by nobody who only didn't unlock the bundle yet.
    if library.may_list(&folder)? { Err(LibraryError::Locked.into()) } else { Ok(None) }
}

fn not_imported(file: &Path) -> Failure {
    let name = file.file_stem().map_or("NAME".into(), |stem| stem.to_string_lossy().to_lowercase());
    let hint = format!("run `tiles model import {}`, then write `FROM {name}`", file.display());
    Failure::new(Code::Model, format!("`{}` must be imported before it can answer", file.display()), hint)
}

fn absent(from: &str) -> Failure {
    let hint = "import it with `tiles model import PATH`, copy it from another bundle with `tiles model export`, or name \
                one that `tiles model list` shows";
    Failure::new(Code::Model, format!("the model `{from}` isn't here"), hint)
}

/// Shows a reply while it comes: the answer rendered on stdout, thoughts dim on stderr, in full or folded into one line.
pub(crate) struct Screen<'a> {
    app: &'a App,
    markdown: Markdown,
    thoughts: Thoughts<'a>,
    failed: Option<crate::terminal::TerminalError>,
}

impl<'a> Screen<'a> {
    pub(crate) fn new(app: &'a App, syntaxes: &Rc<Syntaxes>, folds: bool) -> Self {
        let styles = app.terminal.styles(Stream::Out);
        let markdown = Markdown::new(Mode::of(&app.terminal), styles, Rc::clone(syntaxes));
        Self { app, markdown, thoughts: Thoughts::new(&app.terminal, folds), failed: None }
    }

    /// Shows the next piece.
    pub(crate) fn show(&mut self, piece: Piece) {
        match piece {
            Piece::Reasoning(text) => self.thoughts.show(&text),
            Piece::Text(text) => {
                self.thoughts.finish();
                let shown = self.markdown.feed(&text);
                self.print(&shown);
            }
        }
    }

    /// Shows what was held back, and ends the last line.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.thoughts.finish();
        let rest = self.markdown.finish();
        self.print(&rest);
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn print(&mut self, text: &str) {
        if self.failed.is_none() && !text.is_empty() {
            self.failed = self.app.terminal.out(text).err();
        }
    }
}

/// `42.1 tok/s · 128 tokens · 0.31 s to first token`.
pub(crate) fn statistics(completion: &Completion) -> String {
    let (usage, timing) = (completion.usage, completion.timing);
    let seconds = timing.first_token_ms as f64 / 1000.0;
    let cached =
        if usage.cached_tokens > 0 { format!(", {} from the cache", usage.cached_tokens) } else { String::new() };
    let drafted = match usage.drafted_tokens {
        0 => String::new(),
        drafted => format!(" · {}/{drafted} drafts", usage.accepted_tokens),
    };
    format!(
        "{:.1} tok/s · {} tokens · {seconds:.2} s to first token · prompt {} tokens{cached}{drafted} · seed {}",
        timing.decode_tokens_per_s, usage.output_tokens, usage.input_tokens, completion.seed
    )
}

/// Opens the models that came with the bundle: no key is needed for them.
pub(crate) fn shipped(bundle: &Bundle<Verified>) -> Result<Library, Failure> {
    Ok(Library::open(&bundle.models(), &bundle.manifest().files, &bundle.added_models(), None)?)
}
