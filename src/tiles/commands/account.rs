//! `tiles account`: who this drive is.

use serde_json::json;

use crate::app::App;
use crate::args::{AccountCommand, OnboardingArguments};
use crate::failure::{Code, Failure};
use crate::terminal::escape::neutralise_line;
use crate::unlock::{NICKNAME, Open};

/// The longest nickname, in characters.
const NICKNAME_CHARS_MAX: usize = 64;

/// Runs it.
pub(crate) fn run(app: &App, command: Option<AccountCommand>) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    match command {
        None => {
            let open = app.unlock(&bundle, &OnboardingArguments::default())?;
            show(app, &open)?;
            open.close()
        }
        Some(AccountCommand::Create { nickname, mut onboarding }) => {
            use tilekit::identity::KeyStore as _;
            if tilekit::identity::KeyFile::new(&bundle.key_folder()).exists()? {
                let hint = "see it with `tiles account`; another identity needs another bundle";
                return Err(Failure::new(Code::Failure, format!("{} has an identity already", bundle.noun()), hint));
            }
            onboarding.nickname = nickname.or(onboarding.nickname);
            let open = app.unlock(&bundle, &onboarding)?;
            show(app, &open)?;
            open.close()
        }
        Some(AccountCommand::SetNickname { nickname }) => {
            check_nickname(&nickname)?;
            let open = app.unlock(&bundle, &OnboardingArguments::default())?;
            open.store.set_nickname(&nickname, app.clock.now())?;
            app.terminal.say(&format!("You are {} now.", neutralise_line(&nickname)));
            show(app, &open)?;
            open.close()
        }
    }
}

fn show(app: &App, open: &Open) -> Result<(), Failure> {
    let nickname = open.store.setting(NICKNAME)?;
    let did = open.identity.did().to_string();
    app.print(
        &json!({ "nickname": nickname, "did": did, "created_at": open.identity.created_at().to_string() }),
        || {
            let nickname = nickname.as_deref().unwrap_or("(none; set one with `tiles account set-nickname NAME`)");
            format!(
                "nickname  {}\ndid       {did}\nsince     {}",
                neutralise_line(nickname),
                open.identity.created_at()
            )
        },
    )
}

/// Refuses a nickname that is too long or would steer a terminal.
pub(crate) fn check_nickname(nickname: &str) -> Result<(), Failure> {
    let fits = !nickname.trim().is_empty() && nickname.chars().count() <= NICKNAME_CHARS_MAX;
    if fits && !nickname.chars().any(char::is_control) {
        return Ok(());
    }
    let why = format!("a nickname has 1 to {NICKNAME_CHARS_MAX} characters and none that control a terminal");
    Err(Failure::new(Code::Usage, why, "choose another one"))
}
