//! The command line as scripts see it: what is printed where, as JSON and as text, and the exit codes.

use crate::drive::{ANSWER, TestBundle};

#[test]
fn a_question_is_answered_and_kept() {
    let bundle = TestBundle::new();
    let answer = bundle.json(&["run", "-p", "hi"]);
    assert_eq!(answer["text"], ANSWER);
    assert_eq!(answer["finish_reason"], "stop");
    let sessions = bundle.json(&["session", "list"]);
    assert_eq!(sessions[0]["id"], answer["session"]);
    assert_eq!(sessions[0]["messages"], 2);
    assert_eq!(bundle.ok(&["-p", "again"]), format!("{ANSWER}\n"), "the answer alone is on standard output");
}
