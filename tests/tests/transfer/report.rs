// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The page of `vfio-user-ctl migrate --report`: whatever became of a migration, and nothing about one that never began.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use system_tests::backend::Backend;

use super::tool::{code, ctl, line, start};
use super::vm::text;

/// Longer than any page.
static OLDER: [u8; 1 << 20] = [b'o'; 1 << 20];

fn migrate(from: &Path, to: &Path, page: &Path, more: &[&str]) -> Output {
    let arguments = ["migrate", "--json", "--from", text(from), "--to", text(to)];
    ctl(&[&arguments[..], &["--report", text(page)], more].concat())
}

#[test]
fn a_migration_that_does_not_begin_leaves_an_older_report_alone() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let at = |name| folder.path().join(name);
    let (page, link, nothing) = (at("page.html"), at("link"), at("nothing"));
    fs::write(&page, OLDER).expect("a file");
    symlink("new", &link).expect("a link");
    let backend = start(&[]);
    let socket = backend.socket();
    for (from, to) in [(&nothing, &socket), (&socket, &nothing)] {
        for report in [&page, &at("new"), &link] {
            let output = migrate(from, to, report, &[]);
            assert_eq!(code(&output), Some(1), "{output:?}");
            assert!(line(&output).contains("nothing"), "{output:?}");
            assert!(fs::read(&page).expect("a file") == OLDER);
            assert!(!at("new").exists() && link.is_symlink());
        }
    }
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_is_attached_to() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (source, destination) = (start(&[]), start(&[]));
    for page in [folder.path(), &folder.path().join("nowhere/page.html")] {
        let output = migrate(&source.socket(), &destination.socket(), page, &[]);
        assert_eq!(code(&output), Some(1), "{output:?}");
        let said = line(&output);
        let expected = format!("Cannot write {}: ", page.display());
        assert!(said.contains(&expected), "{said}");
    }
    for backend in [&source, &destination] {
        let report = backend.report();
        assert!(!report.contains("Client attached"), "{report}");
    }
}

/// It replaces the older one, of which nothing is left, and is there however it ended.
#[test]
fn a_report_is_written_whatever_became_of_the_migration() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let page = folder.path().join("page.html");
    let limit = ["--downtime-limit", "1000", "--bandwidth", "1G"];
    let smaller = || Backend::start_model(&["vram=2M"]);
    for (faults, destination, exit, outcome) in [
        (
            &["faults=garbage-sizes"][..],
            start(&[]),
            3,
            "not switched over",
        ),
        (&["faults=read-error@0"], start(&[]), 1, "not switched over"),
        (&[], smaller(), 1, "not switched over"),
        (&[], start(&[]), 0, "migrated"),
    ] {
        fs::write(&page, OLDER).expect("a file");
        let source = start(faults);
        let output = migrate(&source.socket(), &destination.socket(), &page, &limit);
        assert_eq!(code(&output), Some(exit), "{output:?}");
        let found = fs::read_to_string(&page).expect("a page");
        let row = format!("Outcome</td><td>{outcome}");
        assert!(found.contains(&row) && found.contains("<svg"), "{found}");
        assert!(found.trim_end().ends_with("</html>"), "{found}");
    }
    let output = migrate(folder.path(), folder.path(), Path::new("/dev/null"), &[]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(Path::new("/dev/null").exists());
}

#[test]
fn a_report_goes_into_a_pipe() {
    let (source, destination) = (start(&[]), start(&[]));
    let stdout = Path::new("/dev/stdout");
    let output = migrate(&source.socket(), &destination.socket(), stdout, &[]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("</html>"), "{said}");
}
