//! Renderings of small templates of our own, with the text that Jinja 3.1.6 gives.

use super::*;
use crate::test_folder::TestFolder;

fn rendering(messages: &[(&str, &str)]) -> Rendering {
    let message = |(role, content): &(&str, &str)| {
        Value::from_pairs([("role", Value::from(*role)), ("content", Value::from(*content))])
    };
    Rendering {
        messages: messages.iter().map(message).collect(),
        add_generation_prompt: true,
        think: None,
        variables: Vec::new(),
        now: Timestamp::from_ms(1_769_860_800_000),
    }
}

fn render(source: &str) -> Result<String, String> {
    let template = ChatTemplate::from_source(source).map_err(|error| error.to_string())?;
    let mut rendering = rendering(&[("user", "a <b> & \"c\"")]);
    let tool =
        Value::from_pairs([("name", Value::from("é\n\u{1}/<")), ("n", Value::from(1.5)), ("none", Value::from(()))]);
    let list = Value::from_iter([Value::from(1), Value::from(true), Value::from_iter(Vec::<Value>::new())]);
    rendering.variables = vec![("tool".into(), tool), ("list".into(), list)];
    template.render(&rendering).map_err(|error| error.to_string())
}

#[test]
fn templates_render_as_in_transformers() {
    for (source, expected) in [
        ("{{ messages[0]['content'] }}", "a <b> & \"c\""),
        ("{{ messages[0].role }}\n", "user"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{{ tool | tojson }}", r#"{"name": "é\n\u0001/<", "n": 1.5, "none": null}"#),
        ("{{ list | tojson }}", "[1, true, []]"),
        ("{{ list | tojson(indent=2) }}", "[\n  1,\n  true,\n  []\n]"),
        ("{{ {} | tojson(indent=4) }}", "{}"),
        ("{{ {'a': {'b': 1}} | tojson(indent=4) }}", "{\n    \"a\": {\n        \"b\": 1\n    }\n}"),
        ("{{ none }}{{ true }}{{ nothing }}|", "NoneTrue|"),
        ("{{ ' x '.strip() ~ 'ab'.upper() ~ 'a-b'.split('-')[-1] }}", "xABb"),
        ("{{ 'ab'.startswith('a') }}", "True"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("a\n{%- generation -%}\n x {% endgeneration %}\nb", "ax b"),
        ("{% generation %}x{%- endgeneration %}", "x"),
        ("{{ '{% generation' }}", "{% generation"),
        ("{{ strftime_now('%d %B %Y %H:%M') }}", "31 January 2026 12:00"),
        ("{% if strftime_now is defined %}{{ bos_token is defined }}{% endif %}", "False"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}", "<1>"),
        ("{% if enable_thinking is defined %}no{% endif %}{{ add_generation_prompt }}", "True"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn what_a_template_cannot_do_is_said() {
    let deep = format!("{{{{ {}1{} | tojson }}}}", "[".repeat(100), "]".repeat(100));
    for (source, expected) in [
        ("{% if %}", "the chat template has an error: "),
        (
            "{{ raise_exception('roles must alternate') }}",
            "the chat template refuses this conversation: roles must alternate (line 1)",
        ),
        ("\n{{ nothing.at.all }}", "the chat template refuses this conversation: "),
        ("{{ strftime_now('%!') }}", "the chat template refuses this conversation: "),
        ("{{ messages | tojson(nonsense=1) }}", "the chat template refuses this conversation: "),
        ("{% include 'etc' %}", "the chat template refuses this conversation: "),
        (&deep, "the chat template "),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "the chat template refuses this conversation: ",
        ),
        (
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "the chat template refuses this conversation: ",
        ),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "the chat template refuses this conversation: "),
    ] {
        let error = render(source).expect_err(source);
        assert!(error.starts_with(expected), "{source}: {error}");
    }
    let long = "x".repeat(TEMPLATE_BYTES_MAX as usize + 1);
    assert_eq!(render(&long), Err("the chat template has an error: it is longer than 1048576 bytes".into()));
}

#[test]
fn the_template_is_found_where_models_keep_it() {
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    for (config, file, expected) in [
        (None, Some("file"), Ok("file")),
        (Some(r#"{"chat_template": "config"}"#), None, Ok("config")),
        (Some(r#"{"chat_template": "config"}"#), Some("file"), Ok("file")),
        (Some(named), None, Ok("d")),
        (Some(r#"{"chat_template": 3}"#), None, Err("the model has no chat template")),
        (Some("{}"), None, Err("the model has no chat template")),
        (None, None, Err("the model has no chat template")),
        (Some("{"), Some("file"), Err("`tokenizer_config.json` of the model can't be used: EOF")),
    ] {
        let folder = TestFolder::new();
        for (name, content) in [("tokenizer_config.json", config), ("chat_template.jinja", file)] {
            if let Some(content) = content {
                std::fs::write(folder.path().join(name), content).expect("target can be written");
            }
        }
        let found = ChatTemplate::load(&VerifiedFolder::unlisted(folder.path()));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.source(), expected),
            (Err(found), Err(expected)) => assert!(found.to_string().starts_with(expected), "{found}"),
            (found, _) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn special_tokens_and_thinking_are_variables() {
    let folder = TestFolder::new();
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ bos_token }}{{ eos_token }}{{ enable_thinking }}{{ reasoning_effort }}"}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).expect("target can be written");
    let template = ChatTemplate::load(&VerifiedFolder::unlisted(folder.path())).expect("it is sound");
    for (think, expected) in [
        (None, "<s></s>"),
        (Some(Think::Off), "<s></s>False"),
        (Some(Think::On), "<s></s>True"),
        (Some(Think::High), "<s></s>Truehigh"),
    ] {
        let rendered = template.render(&Rendering { think, ..rendering(&[]) });
        assert_eq!(rendered.expect("it renders"), expected);
    }
    let other = template.with_source("{{ bos_token }}!").expect("it is sound");
    assert_eq!(other.render(&rendering(&[])).expect("it renders"), "<s>!");
}

#[test]
fn the_forms_of_a_modelfile_are_templates() {
    use crate::modelfile::Form;
    let said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")];
    let render = |form: Form| {
        let template = ChatTemplate::from_source(form.jinja().expect("it has one")).expect("it is Jinja");
        template.render(&rendering(&said)).expect("it renders")
    };
    assert_eq!(render(Form::Passthrough), "Be brief.HiHello.Bye");
    assert_eq!(
        render(Form::Chatml),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n\
         <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
    let harmony = render(Form::Harmony);
    assert!(
        harmony.ends_with(
            "for every message.<|end|><|start|>developer<|message|># Instructions\n\nBe brief.<|end|>\
             <|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|end|>\
             <|start|>user<|message|>Bye<|end|><|start|>assistant"
        ),
        "{harmony}"
    );
    assert!(harmony.contains("Current date: 2026-01-31\n\nReasoning: medium\n"), "{harmony}");
}
