//! The conversation at the prompt: the line editor, slash commands, and how a reply is shown.

pub(crate) mod slash;
pub(crate) mod editor;
pub(crate) mod markdown;
