//! The program of docs/COMPAT.md. `benches/peers` runs it as it was written for the synchronous
//! crate.

use std::path::Path;

mod after {
    include!("programs/after.rs");

    #[test]
    fn runs() {
        main().unwrap();
    }
}

#[test]
fn page_shows_the_programs() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(page) = std::fs::read_to_string(dir.join("docs/COMPAT.md")) else {
        return; // The published package has no such page.
    };
    for program in [
        include_str!("programs/before.rs"),
        include_str!("programs/after.rs"),
    ] {
        assert!(page.contains(program), "docs/COMPAT.md lacks:\n{program}");
    }
}
