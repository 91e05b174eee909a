//! `maskwright completions` and `maskwright man`, made of the same descriptions as the help texts.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, CliError, Outcome, complete};
use crate::fsio::{Destination, FsError, OutputFile, create_folder};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  maskwright completions bash > ~/.local/share/bash-completion/completions/maskwright
  maskwright completions zsh > ~/.zfunc/_maskwright    # and fpath+=~/.zfunc before compinit
  maskwright completions fish > ~/.config/fish/completions/maskwright.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Outcome, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    print_all(&script)
}

/// Prints; whoever reads only a part of it is no error.
fn print_all(text: &[u8]) -> Result<Outcome, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(Outcome::Done),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::Done),
        Err(e) => Err(FsError::os("write", "standard output", e).into()),
    }
}

#[derive(clap::Args)]
#[command(after_help = "Examples:
  maskwright man prune | man -l -
  maskwright man --out ~/.local/share/man/man1")]
pub(super) struct ManArgs {
    /// Print the page of this command (without it that of maskwright)
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    of: Option<String>,
    /// Write the pages of maskwright and all its commands into this folder [default: one page is printed]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace pages that are there already
    #[arg(long, requires = "out")]
    force: bool,
}

const NAME: &str = "maskwright";

pub(super) fn man(args: &ManArgs) -> Result<Outcome, CliError> {
    let whole = complete(Cli::command().disable_help_subcommand(true));
    let failed = |path: &str, e| FsError::os("write", path, e);
    let Some(folder) = &args.out else {
        let command = match &args.of {
            None => &whole,
            Some(name) => whole.find_subcommand(name).ok_or_else(|| {
                let names: Vec<&str> = whole.get_subcommands().map(clap::Command::get_name).collect();
                CliError::Usage(format!("there is no command {name}; the commands are {}", names.join(", ")))
            })?,
        };
        let page = page(command).map_err(|e| failed("the page", e))?;
        return print_all(&page);
    };
    create_folder(folder)?;
    let mut pages = Vec::new();
    for command in std::iter::once(&whole).chain(whole.get_subcommands()) {
        let path = folder.join(Man::new(command.clone()).get_filename());
        let page = page(command).map_err(|e| failed(&path.to_string_lossy(), e))?;
        pages.push((OutputFile::check(&path, &[], args.force)?, page));
    }
    for (file, page) in pages {
        file.write_bytes(&page)?;
        println!("{}", file.path().display());
    }
    Ok(Outcome::Done)
}

/// A page; the text behind the options keeps the lines of its examples, which clap_mangen would fill.
fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone()).source(concat!("maskwright ", env!("CARGO_PKG_VERSION")));
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        notes(&text.to_string()).to_writer(&mut out)?;
    }
    Ok(out)
}

/// Prose is filled; indented lines stand as they are.
fn notes(text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["NOTES"]);
    let mut indented = false;
    for line in text.lines() {
        let indents = line.starts_with(' ');
        if indents != indented {
            roff.control(if indents { "nf" } else { "fi" }, []);
            indented = indents;
        }
        match line.trim().is_empty() {
            true => roff.control("PP", []),
            false => roff.text([roman(line)]),
        };
    }
    if indented {
        roff.control("fi", []);
    }
    roff
}
