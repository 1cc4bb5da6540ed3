//! The parameters by name, as `PARAMETER`, `--set NAME=VALUE` and `/set` give them: one table of names, types and ranges.

use super::Sampling;
use crate::excerpt::excerpt;
use crate::hint::Hint;

/// The largest context window that can be asked for, in tokens.
pub const NUM_CTX_MAX: usize = 16 * 1024 * 1024;
/// How many stop texts there may be.
pub const STOP_TEXTS_MAX: usize = 64;
/// How long a stop text may be, in bytes.
pub const STOP_BYTES_MAX: usize = 1024;

/// Everything that parameters decide: the sampling, and how the engine works.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// The context window in tokens; `None` is the model's own, bounded by memory.
    pub num_ctx: Option<usize>,
    /// How many tokens at the prompt's beginning stay when old turns are dropped.
    pub num_keep: usize,
    /// How many tokens of the prompt are computed at a time; `None` leaves it to the engine.
    pub num_batch: Option<usize>,
    /// How many threads compute; `None` leaves it to the engine.
    pub num_thread: Option<usize>,
}

/// What a parameter takes, and how it is put in place. A parameter without an assignment has no effect here.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number between two bounds that are both allowed.
    Whole {
        /// The least value.
        min: i128,
        /// The greatest value.
        max: i128,
        /// Puts a checked value in place.
        assign: Option<fn(&mut Parameters, i128)>,
    },
    /// A number up to a bound that is allowed.
    Decimal {
        /// The least value.
        min: f32,
        /// Whether `min` itself is allowed.
        min_allowed: bool,
        /// The greatest value.
        max: f32,
        /// Puts a checked value in place.
        assign: Option<fn(&mut Parameters, f32)>,
    },
    /// `true` or `false`, in any of the spellings of Go's `strconv.ParseBool`. No such parameter has an effect here.
    Switch,
    /// A text at which generation stops.
    StopText,
}

/// One parameter: a row of [`PARAMETERS`].
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name, which is Ollama's.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it does, or why it does nothing here.
    pub effect: &'static str,
    /// Its present value as a person reads it; empty where it has no effect.
    pub show: fn(&Parameters) -> String,
}

/// What setting a parameter came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is set.
    Acts,
    /// Its value is well-formed, but the parameter does nothing in this program.
    NoEffectHere {
        /// What to tell the person.
        warning: String,
    },
}

/// A parameter can't be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// There is no parameter of this name.
    #[error("`{name}` is not a parameter")]
    Unknown {
        /// The name that was given.
        name: String,
        /// The parameter that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The value has the wrong type or lies outside the range.
    #[error("`{name}` takes {expected}, not `{value}`")]
    Value {
        /// Which parameter.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// What it takes.
        expected: String,
    },
    /// There are as many stop texts as there may be.
    #[error("there are already {STOP_TEXTS_MAX} stop texts")]
    TooManyStops,
    /// The text is no assignment.
    #[error("`{text}` is not NAME=VALUE")]
    NoAssignment {
        /// The text that was given.
        text: String,
    },
}

impl Hint for ParameterError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { nearest: Some(nearest), .. } => format!("write `{nearest}`"),
            Self::Unknown { nearest: None, .. } => {
                let acting: Vec<_> = PARAMETERS.iter().filter(|row| row.acts()).map(|row| row.name).collect();
                format!("use one of {}", acting.join(", "))
            }
            Self::Value { name, expected, .. } => format!("give `{name}` {expected}"),
            Self::TooManyStops => "remove a stop text".into(),
            Self::NoAssignment { .. } => "write it as `temperature=0.2`".into(),
        })
    }
}

const fn whole(
    name: &'static str,
    (min, max): (i128, i128),
    effect: &'static str,
    assign: fn(&mut Parameters, i128),
    show: fn(&Parameters) -> String,
) -> Parameter {
    Parameter { name, kind: Kind::Whole { min, max, assign: Some(assign) }, effect, show }
}

const fn decimal(
    name: &'static str,
    (min, max): (f32, f32),
    effect: &'static str,
    assign: fn(&mut Parameters, f32),
    show: fn(&Parameters) -> String,
) -> Parameter {
    Parameter { name, kind: Kind::Decimal { min, min_allowed: true, max, assign: Some(assign) }, effect, show }
}

const fn idle(name: &'static str, kind: Kind, why: &'static str) -> Parameter {
    Parameter { name, kind, effect: why, show: |_| String::new() }
}

const IDLE_WHOLE: Kind = Kind::Whole { min: i64::MIN as i128, max: i64::MAX as i128, assign: None };
const IDLE_DECIMAL: Kind = Kind::Decimal { min: f32::MIN, min_allowed: true, max: f32::MAX, assign: None };
const U32: i128 = u32::MAX as i128;
const I32: i128 = i32::MAX as i128;

fn or_text(value: Option<impl ToString>, otherwise: &str) -> String {
    value.map_or_else(|| otherwise.to_owned(), |value| value.to_string())
}

// The ranges of the whole numbers are those of the fields, so the casts below lose nothing.

/// Every parameter that is known, those that act first.
pub static PARAMETERS: &[Parameter] = &[
    decimal(
        "temperature",
        (0.0, 10.0),
        "how daring the choice of the next token is; 0 takes the most likely one",
        |to, value| to.sampling.temperature = value,
        |of| of.sampling.temperature.to_string(),
    ),
    whole(
        "top_k",
        (0, U32),
        "keeps that many of the most likely tokens; 0 keeps all",
        |to, value| to.sampling.top_k = value as u32,
        |of| of.sampling.top_k.to_string(),
    ),
    decimal(
        "top_p",
        (0.0, 1.0),
        "keeps the likeliest tokens that together have this probability; 1 keeps all",
        |to, value| to.sampling.top_p = value,
        |of| of.sampling.top_p.to_string(),
    ),
    decimal(
        "min_p",
        (0.0, 1.0),
        "drops tokens less likely than this times the likeliest; 0 keeps all",
        |to, value| to.sampling.min_p = value,
        |of| of.sampling.min_p.to_string(),
    ),
    decimal(
        "typical_p",
        (0.0, 1.0),
        "locally typical sampling; 1 keeps all",
        |to, value| to.sampling.typical_p = value,
        |of| of.sampling.typical_p.to_string(),
    ),
    whole(
        "repeat_last_n",
        (-1, I32),
        "how many of the last tokens the penalties look at; 0 none, -1 the whole context",
        |to, value| to.sampling.repeat_last_n = value as i32,
        |of| of.sampling.repeat_last_n.to_string(),
    ),
    Parameter {
        name: "repeat_penalty",
        kind: Kind::Decimal {
            min: 0.0,
            min_allowed: false,
            max: 10.0,
            assign: Some(|to, value| to.sampling.repeat_penalty = value),
        },
        effect: "makes tokens seen before less likely; 1 does nothing",
        show: |of| of.sampling.repeat_penalty.to_string(),
    },
    decimal(
        "presence_penalty",
        (-2.0, 2.0),
        "taken off a token seen before",
        |to, value| to.sampling.presence_penalty = value,
        |of| of.sampling.presence_penalty.to_string(),
    ),
    decimal(
        "frequency_penalty",
        (-2.0, 2.0),
        "taken off a token for each time it was seen before",
        |to, value| to.sampling.frequency_penalty = value,
        |of| of.sampling.frequency_penalty.to_string(),
    ),
    whole(
        "seed",
        (-1, u64::MAX as i128),
        "the same seed gives the same answer; -1 draws one and shows it",
        |to, value| to.sampling.seed = u64::try_from(value).ok(),
        |of| or_text(of.sampling.seed, "drawn anew and shown"),
    ),
    whole(
        "num_predict",
        (-1, I32),
        "how many tokens an answer has at most; -1 until the model stops",
        |to, value| to.sampling.num_predict = u32::try_from(value).ok(),
        |of| or_text(of.sampling.num_predict, "until the model stops"),
    ),
    Parameter {
        name: "stop",
        kind: Kind::StopText,
        effect: "a text at which the answer ends; may be given several times",
        show: |of| of.sampling.stop.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" "),
    },
    whole(
        "num_ctx",
        (1, NUM_CTX_MAX as i128),
        "the context window in tokens",
        |to, value| to.num_ctx = Some(value as usize),
        |of| or_text(of.num_ctx, "the model's, bounded by memory"),
    ),
    whole(
        "num_keep",
        (0, I32),
        "how many tokens at the beginning stay when old turns are dropped",
        |to, value| to.num_keep = value as usize,
        |of| of.num_keep.to_string(),
    ),
    whole(
        "num_batch",
        (1, 65_536),
        "how many tokens of the prompt are computed at a time",
        |to, value| to.num_batch = Some(value as usize),
        |of| or_text(of.num_batch, "chosen by the engine"),
    ),
    whole(
        "num_thread",
        (0, 1024),
        "how many threads compute; 0 leaves it to the engine",
        |to, value| to.num_thread = Some(value as usize).filter(|threads| *threads > 0),
        |of| or_text(of.num_thread, "chosen by the engine"),
    ),
    idle("num_gpu", IDLE_WHOLE, "layers are not split between devices"),
    idle("main_gpu", IDLE_WHOLE, "layers are not split between devices"),
    idle("use_mmap", Kind::Switch, "weights are verified while they are read"),
    idle("draft_num_predict", IDLE_WHOLE, "there is no draft model"),
    idle("penalize_newline", Kind::Switch, "newlines are tokens like others"),
    idle("low_vram", Kind::Switch, "memory is planned before a model is loaded"),
    idle("f16_kv", Kind::Switch, "the engine chooses the type of its cache"),
    idle("logits_all", Kind::Switch, "only the last logits are needed"),
    idle("vocab_only", Kind::Switch, "models are loaded whole"),
    idle("use_mlock", Kind::Switch, "memory is not locked"),
    idle("mirostat", IDLE_WHOLE, "Mirostat sampling is not offered"),
    idle("mirostat_tau", IDLE_DECIMAL, "Mirostat sampling is not offered"),
    idle("mirostat_eta", IDLE_DECIMAL, "Mirostat sampling is not offered"),
];

impl Parameter {
    /// Finds a parameter by its exact name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PARAMETERS.iter().find(|row| row.name == name)
    }

    /// Whether it does anything in this program.
    pub const fn acts(&self) -> bool {
        match self.kind {
            Kind::Whole { assign, .. } => assign.is_some(),
            Kind::Decimal { assign, .. } => assign.is_some(),
            Kind::Switch => false,
            Kind::StopText => true,
        }
    }

    /// What it takes, such as `a number from 0 to 10`.
    pub fn range(&self) -> String {
        match self.kind {
            Kind::Whole { assign: None, .. } => "a whole number".into(),
            Kind::Whole { min, max, .. } => format!("a whole number from {min} to {max}"),
            Kind::Decimal { assign: None, .. } => "a number".into(),
            Kind::Decimal { min, min_allowed: true, max, .. } => format!("a number from {min} to {max}"),
            Kind::Decimal { min, max, .. } => format!("a number above {min} up to {max}"),
            Kind::Switch => "`true` or `false`".into(),
            Kind::StopText => format!("a text of 1 to {STOP_BYTES_MAX} bytes"),
        }
    }
}

impl Parameters {
    /// Sets the parameter `name` to what `value` says; `stop` adds a text to those there are.
    ///
    /// # Errors
    /// [`ParameterError`]; nothing is changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<Effect, ParameterError> {
        let Some(row) = Parameter::named(name) else {
            let nearest = nearest(name, PARAMETERS.iter().map(|row| row.name));
            return Err(ParameterError::Unknown { name: excerpt(name), nearest });
        };
        let refuse = || ParameterError::Value { name: row.name, value: excerpt(value), expected: row.range() };
        match row.kind {
            Kind::Whole { min, max, assign } => {
                let number = value.parse().ok().filter(|number| (min..=max).contains(number)).ok_or_else(refuse)?;
                if let Some(assign) = assign {
                    assign(self, number);
                }
            }
            Kind::Decimal { min, min_allowed, max, assign } => {
                let fits = |number: &f32| (min..=max).contains(number) && (min_allowed || *number > min);
                let number = value.parse().ok().filter(fits).ok_or_else(refuse)?;
                if let Some(assign) = assign {
                    assign(self, number);
                }
            }
            Kind::Switch => match value {
                "1" | "t" | "T" | "TRUE" | "true" | "True" | "0" | "f" | "F" | "FALSE" | "false" | "False" => {}
                _ => return Err(refuse()),
            },
            Kind::StopText if value.is_empty() || value.len() > STOP_BYTES_MAX => return Err(refuse()),
            Kind::StopText if self.sampling.stop.iter().any(|stop| stop == value) => {}
            Kind::StopText if self.sampling.stop.len() >= STOP_TEXTS_MAX => return Err(ParameterError::TooManyStops),
            Kind::StopText => self.sampling.stop.push(value.to_owned()),
        }
        Ok(match row.acts() {
            true => Effect::Acts,
            false => Effect::NoEffectHere { warning: format!("`{}` has no effect here: {}", row.name, row.effect) },
        })
    }

    /// The values in force of every parameter that acts, by name, in the order of [`PARAMETERS`].
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        PARAMETERS.iter().filter(|row| row.acts()).map(|row| (row.name, (row.show)(self))).collect()
    }

    /// Sets a parameter from `NAME=VALUE`, as `--set` gives it.
    ///
    /// # Errors
    /// [`ParameterError`]; nothing is changed then.
    pub fn set_assignment(&mut self, text: &str) -> Result<Effect, ParameterError> {
        let (name, value) = text.split_once('=').ok_or_else(|| ParameterError::NoAssignment { text: excerpt(text) })?;
        self.set(name.trim(), value)
    }
}

/// The candidate that `name` was probably meant to be: at most a third of its letters differ.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const NAME_BYTES_MAX: usize = 64;
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let name = name.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, &candidate.to_lowercase());
    candidates
        .map(|candidate| (distance(candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests;
