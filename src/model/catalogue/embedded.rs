//! Model files within the program.

/// By the names that the catalogue gives them.
static FILES: [(&str, &[u8]); 1] = [(
    "tiny.Q4_1.gguf",
    include_bytes!("../../../assets/models/tiny/tiny.Q4_1.gguf"),
)];

/// The content of a file, if the program has it.
pub(super) fn file(name: &str) -> Option<&'static [u8]> {
    FILES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, content)| content)
}
