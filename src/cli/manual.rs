//! `rrlb completions` and `rrlb man`, made from the arguments' definitions.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::{arguments::Arguments, failure::Failure, screen::Screen};

/// Prints a shell's completions.
///
/// # Errors
/// Nobody reads them.
pub(super) fn print_completions(shell: Shell, screen: &mut Screen) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "rrlb", &mut text);
    screen.print(&String::from_utf8_lossy(&text))
}

/// Prints the manual page: one for all commands.
///
/// # Errors
/// Nobody reads it.
pub(super) fn print_manual(screen: &mut Screen) -> Result<(), Failure> {
    let text = manual()?;
    screen.print(&text)
}

fn manual() -> Result<String, io::Error> {
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(root.clone());
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    for command in root.get_subcommands() {
        command_sections(command, "rrlb", &mut text)?;
    }
    let mut extra = Vec::new();
    page.render_extra_section(&mut extra)?;
    let extra = String::from_utf8_lossy(&extra).replacen(".SH EXTRA", ".SH \"EXIT CODES, SIGNALS, ENVIRONMENT\"", 1);
    text.extend_from_slice(extra.as_bytes());
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A section for a command, and one for each below it.
fn command_sections(command: &Command, above: &str, text: &mut Vec<u8>) -> io::Result<()> {
    let name = format!("{above} {}", command.get_name());
    let below: Vec<&Command> = command.get_subcommands().collect();
    if below.is_empty() {
        writeln!(text, ".SH \"{}\"", name.to_uppercase())?;
        // What belongs to every command is told once, above.
        let own = command.clone().mut_args(|arg| {
            let shared = arg.is_global_set() || arg.get_id() == "help";
            arg.hide(shared)
        });
        let has_own = own.get_arguments().any(|arg| !arg.is_hide_set());
        let page = clap_mangen::Man::new(own);
        let mut part = Vec::new();
        page.render_synopsis_section(&mut part)?;
        page.render_description_section(&mut part)?;
        if has_own {
            page.render_options_section(&mut part)?;
        }
        text.extend_from_slice(String::from_utf8_lossy(&part).replace(".SH ", ".SS ").as_bytes());
    }
    below.into_iter().try_for_each(|command| command_sections(command, &name, text))
}
