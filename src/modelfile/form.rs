//! The published forms of a chat that `RENDERER` and `PARSER` name.

/// How a conversation is written as a prompt, or an answer is taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// As the checkpoint's own template says.
    #[default]
    Auto,
    /// `<|im_start|>role`, text, `<|im_end|>` (OpenAI's ChatML); answers may begin with `<think>…</think>`.
    Chatml,
    /// Messages in channels, as gpt-oss writes them (OpenAI's Harmony).
    Harmony,
    /// Nothing is added to the texts of the messages, and nothing taken from the answer: for base models.
    Passthrough,
}

/// ChatML.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                      {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// Harmony as far as a chat without tools needs it; the instructions are a developer's message there.
const HARMONY: &str = "<|start|>system<|message|>You are a large language model.\nCurrent date: \
    {{ strftime_now('%Y-%m-%d') }}\n\nReasoning: {{ reasoning_effort or 'medium' }}\n\n\
    # Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>\
    {%- for message in messages %}\
    {%- if message.role == 'system' %}<|start|>developer<|message|># Instructions\n\n{{ message.content }}<|end|>\
    {%- elif message.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>\
    {%- else %}<|start|>user<|message|>{{ message.content }}<|end|>{% endif %}\
    {%- endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}";
/// The texts alone.
const PASSTHROUGH: &str = "{% for message in messages %}{{ message.content }}{% endfor %}";

impl Form {
    /// Every form.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Chatml, Self::Harmony, Self::Passthrough];

    /// Its name in a Modelfile.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Chatml => "chatml",
            Self::Harmony => "harmony",
            Self::Passthrough => "passthrough",
        }
    }

    /// The template that writes it; `None` for [`Form::Auto`].
    pub const fn jinja(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Chatml => Some(CHATML),
            Self::Harmony => Some(HARMONY),
            Self::Passthrough => Some(PASSTHROUGH),
        }
    }
}
