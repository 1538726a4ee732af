//! Each command against an admin API that gives canned answers: what it sends, what it prints, how it ends.

mod backends;
mod fake;
mod finding;
mod process;

use clap::{CommandFactory, Parser};
use fake::{Done, run_with};

use super::{Exit, arguments::Arguments};

#[test]
fn the_arguments_make_sense_to_clap() {
    Arguments::command().debug_assert();
}

#[test]
fn the_help_has_each_flag_under_its_heading() {
    let command = Arguments::command();
    let under = |heading: Option<&str>| -> Vec<String> {
        let found = command.get_arguments().filter(|arg| arg.get_help_heading() == heading);
        found.filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
    };
    assert_eq!(under(Some("Which running instance")), ["socket", "address", "token-file", "ca"]);
    assert_eq!(under(None), ["conf", "test", "upgrade", "daemon"]);
}

/// Every command, with those below it.
fn commands() -> Vec<Vec<String>> {
    let root = Arguments::command();
    let mut all = Vec::new();
    for command in root.get_subcommands() {
        let name = command.get_name().to_owned();
        all.push(vec![name.clone()]);
        all.extend(command.get_subcommands().map(|below| vec![name.clone(), below.get_name().to_owned()]));
    }
    all
}

#[test]
fn no_argument_has_the_id_of_a_global_one() {
    let root = Arguments::command();
    let global: Vec<_> =
        root.get_arguments().filter(|arg| arg.is_global_set()).map(|arg| arg.get_id().clone()).collect();
    assert!(!global.is_empty());
    let mut below: Vec<_> = root.get_subcommands().collect();
    while let Some(command) = below.pop() {
        below.extend(command.get_subcommands());
        for arg in command.get_arguments() {
            assert!(!global.contains(arg.get_id()), "{} {}", command.get_name(), arg.get_id());
        }
    }
}

fn alone(args: &[&str]) -> Done {
    run_with(args, None, false, None)
}

#[test]
fn every_shells_completions_name_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let done = alone(&["completions", shell]);
        assert_eq!(done.exit, Exit::Ok, "{shell}: {}", done.err);
        for name in commands().concat() {
            assert!(done.out.contains(&name), "{shell} does not know {name}");
        }
    }
}

#[test]
fn the_manual_has_a_section_for_every_command_and_the_exit_codes() {
    let done = alone(&["man"]);
    assert_eq!(done.exit, Exit::Ok, "{}", done.err);
    assert!(done.out.contains(".TH rrlb 1"), "{}", done.out);
    let all = commands();
    for path in &all {
        let has_below = all.iter().any(|other| other.len() > path.len() && other.starts_with(path));
        let heading = format!(".SH \"RRLB {}\"", path.join(" ").to_uppercase());
        assert_eq!(done.out.contains(&heading), !has_below, "{heading}");
    }
    assert!(done.out.contains("EXIT CODES") && done.out.contains("RRLB_SOCKET"), "{}", done.out);
}

#[test]
fn the_help_tells_every_exit_code() {
    let help = Arguments::command().render_long_help().to_string();
    let all = [
        Exit::Ok,
        Exit::InvalidConfiguration,
        Exit::Usage,
        Exit::NoInstance,
        Exit::Refused,
        Exit::DeadlinePassed,
        Exit::StartFailed,
        Exit::Internal,
    ];
    for exit in all {
        let start = format!("\n  {:<4}", exit as u8);
        assert!(help.contains(&start), "nothing about {exit:?} in {help}");
    }
}

#[test]
fn a_wrong_value_is_a_usage_error_that_says_what_would_be_right() {
    let cases: &[(&[&str], &str)] = &[
        (&["reload", "--confirm", "60"], "unit"),
        (&["reload", "--confirm", "0s"], "0 would always be over"),
        (&["reload", "--abort-if", "5xx > 2%"], "--confirm"),
        (&["reload", "--confirm", "60s", "--abort-if", "many"], "5xx > 2%"),
        (&["reload", "--confirm", "60s", "--dry-run"], "--dry-run"),
        (&["backend", "weight", "app", "a", "1001"], "1000"),
        (&["backend", "drain", "app"], "<ID>"),
        (&["backend", "drain", "app", "a", "--timeout", "5s"], "--wait"),
        (&["route", "GET", "/path"], "in full"),
        (&["route", "GET", "http://a/", "-H", "no colon"], "Name: value"),
        (&["route", "GET", "http://a/", "--from", "here"], "IP"),
    ];
    for (args, part) in cases {
        let error = Arguments::try_parse_from(["rrlb"].iter().chain(*args)).expect_err("must not be taken").to_string();
        assert!(error.contains(part), "{args:?}: {error}");
    }
}

#[test]
fn the_schema_is_printed() {
    let done = alone(&["schema"]);
    assert_eq!(done.exit, Exit::Ok);
    let schema: serde_json::Value = serde_json::from_str(&done.out).expect("JSON");
    assert!(schema["properties"]["listeners"].is_object());
}
