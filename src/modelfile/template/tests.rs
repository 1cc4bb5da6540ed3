//! Tests of the translation: each template is translated and rendered as the engine does it.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use proptest::prelude::*;

use super::*;

fn render(go: &str, messages: &[(&str, &str)], add_generation_prompt: bool) -> String {
    let jinja = to_jinja(go).unwrap_or_else(|error| panic!("{go}: {error}"));
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("two flags"));
    let messages: Vec<_> = messages.iter().map(|&(role, content)| context! { role, content }).collect();
    let template = environment.template_from_str(&jinja).unwrap_or_else(|error| panic!("{jinja}: {error}"));
    template.render(context! { messages, add_generation_prompt }).unwrap_or_else(|error| panic!("{jinja}: {error}"))
}

const TALK: &[(&str, &str)] = &[("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C")];

#[test]
fn turns_are_rendered_as_ollama_renders_them() {
    let chatml = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n\
        {{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n";
    let opened = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n\
        <|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(chatml, TALK, true), opened);
    assert_eq!(render(chatml, TALK, false), format!("{opened}<|im_end|>\n"));
    for (go, messages, expected) in [
        ("[{{ .System }}|{{ .Prompt }}]", TALK, "[S|A]B[|C]"),
        ("{{ .Prompt }}>{{ .Response }};", TALK, "A>B;C>"),
        ("{{ .Prompt }}{{ if .Response }}>{{ .Response }};{{ end }}!", TALK, "A>B;!C"),
        ("{{ if .Prompt }}{{ .Prompt }}>{{ .Response }};{{ else }}-{{ end }}!", TALK, "A>B;!C>"),
        ("{{ .Prompt }}>{{ .Response }};", &[("user", "A"), ("assistant", "B")], "A>B"),
        ("{{ .Prompt }}.", &[("user", "A"), ("user", "B")], "A\n\nB."),
        ("{{ .Prompt }}{{ if .Response }}[{{ .Response }}]{{ end }}!", &[("user", "A"), ("assistant", "B")], "A[B"),
        ("{{ .Prompt }}{{ if .Response }}!{{ else }}<assistant>{{ end }}", &[("user", "A")], "A<assistant>"),
        ("{{ if not .Response }}<open>{{ end }}{{ .Prompt }}>{{ .Response }};", &[("user", "A")], "<open>A>"),
        ("{{ if .System }}{{ .Response }}{{ else if .Response }}!{{ end }}{{ .Prompt }}", &[("user", "A")], ""),
        ("{{ .System }}{{ .Prompt }}.", &[("user", "A"), ("system", "S"), ("user", "B")], "A.SB."),
        ("  {{ .Prompt }}  \n", &[("user", "{{ x }} & {% y %}")], "  {{ x }} & {% y %}  \n"),
        (" \n{{- .Prompt -}}\n x", &[("user", "A")], "Ax"),
        ("{{/* c }} */}}{{ .Prompt }}", &[("user", "A")], "A"),
    ] {
        assert_eq!(render(go, messages, true), expected, "{go}");
    }
}

#[test]
fn messages_are_ranged_over() {
    for (go, expected) in [
        (
            "{{ range .Messages }}<{{ .Role }}>{{ .Content }}\n{{ end }}<assistant>",
            "<system>S\n<user>A\n<assistant>B\n<user>C\n<assistant>",
        ),
        (
            "{{- range .Messages }}{{ if eq .Role \"user\" }}U{{ else if eq .Role \"system\" }}{{ $.System }}{{ else }}M{{ end }}{{ end }}",
            "SUMU",
        ),
        (
            "{{ if .Messages }}{{ range $.Messages }}{{ .Content }}{{ else }}none{{ end }}{{ else }}{{ .Prompt }}{{ end }}",
            "SABC",
        ),
        ("{{ range $i, $m := .Messages }}{{ .Content }}{{ else }}none{{ end }}", "SABC"),
        ("{{ if and .Messages (not .Prompt) }}y{{ end }}{{ if or .Prompt .Response }}n{{ end }}", "y"),
        ("{{ range .Messages }}{{ if (ne .Role `user` ) }}{{ .Content }}{{ end }}{{ end }}{{ \"}}\\n\" }}", "SB}}\n"),
    ] {
        assert_eq!(render(go, TALK, true), expected, "{go}");
    }
}

#[test]
fn neighbours_of_one_role_are_one_message() {
    let talk = [("system", "S"), ("system", "T"), ("user", "A"), ("user", "B"), ("assistant", "C"), ("user", "D")];
    let go = "{{ .System }}:{{ range .Messages }}({{ .Role }} {{ .Content }}){{ else }}none{{ end }}";
    assert_eq!(render(go, &talk, true), "S\n\nT:(system S\n\nT)(user A\n\nB)(assistant C)(user D)");
    assert_eq!(render(go, &[], true), ":none");
}

#[test]
fn jinja_stays_as_it_is() {
    for jinja in [
        "",
        "text",
        "{{ bos_token }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[0].content }}",
        "{{ \"<s>\" ~ messages[0].content }}",
    ] {
        assert_eq!(to_jinja(jinja).as_deref(), Ok(jinja));
    }
}

#[test]
fn what_lies_outside_is_refused_where_it_stands() {
    for (go, text, reason) in [
        ("{{ .Tools }}", "{{ .Tools }}", "isn't supported"),
        ("a{{ .System }}b{{ $x := .Prompt }}", "{{ $x := .Prompt }}", "isn't supported"),
        ("{{ range $i, $m := .Messages }}{{ $m.Content }}{{ end }}", "{{ $m.Content }}", "isn't supported"),
        ("{{ range .Tools }}{{ end }}", "{{ range .Tools }}", "isn't supported: only `range .Messages` is"),
        (
            "{{ range x := .Messages }}{{ end }}",
            "{{ range x := .Messages }}",
            "isn't supported: only `range .Messages` is",
        ),
        ("{{ .Prompt | upper }}", "{{ .Prompt | upper }}", "isn't supported"),
        ("{{ with .System }}{{ end }}", "{{ with .System }}", "isn't supported"),
        ("{{ if .System }}", "{{ if .System }}", "has no `{{ end }}`"),
        ("{{ .System }}{{ end }}", "{{ end }}", "has no block before it"),
        ("{{ .System }}{{ else }}", "{{ else }}", "has no `if` before it"),
        ("{{ if .System }}{{ else }}{{ else }}{{ end }}", "{{ else }}", "has no `if` before it"),
        ("{{ if }}{{ end }}", "{{ if }}", "has nothing in it"),
        ("{{ if eq .System }}{{ end }}", "{{ if eq .System }}", "gives `eq` 1 operands"),
        ("{{ if (.System }}{{ end }}", "{{ if (.System }}", "has a parenthesis that is never closed"),
        ("{{ .System", "{{", "is never closed"),
        (
            "{{ range .Messages }}{{ .System }}{{ end }}",
            "{{ .System }}",
            "has `.System` within `range`, where it is `$.System`",
        ),
    ] {
        let error = to_jinja(go).expect_err(go);
        assert_eq!((error.text.as_str(), error.reason.as_str()), (text, reason), "{go}");
        assert_eq!(&go[error.span.clone()], text);
    }
    let deep = "{{ if .System }}".repeat(TEMPLATE_DEPTH_MAX) + &"{{ end }}".repeat(TEMPLATE_DEPTH_MAX);
    assert_eq!(to_jinja(&deep).map_err(|error| error.reason), Err("is nested too deep".into()));
    let deep = format!("{{{{ if {}.System }}}}{{{{ end }}}}", "(".repeat(100_000));
    assert_eq!(to_jinja(&deep).map_err(|error| error.reason), Err("is nested too deep".into()));
}

proptest! {
    #[test]
    fn what_is_translated_compiles(parts in proptest::collection::vec(proptest::sample::select(vec![
        "{{ if .System }}", "{{ else }}", "{{ else if .Prompt }}", "{{ end }}", "{{ .Response }}", "{{- .Prompt -}}",
        "{{ range .Messages }}", "{{ .Content }}", "x\n", " {# \\ \" ", "{{ if .Response }}", "{{ if eq $.System \"a\" }}",
    ]), 0..12)) {
        let go = parts.concat();
        if is_go(&go) && to_jinja(&go).is_ok() {
            render(&go, TALK, true);
            render(&go, TALK, false);
        }
    }
}
