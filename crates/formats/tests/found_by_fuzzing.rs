//! Inputs with which fuzzing once broke a reader.

use sedge_formats::template::ChatTemplate;

#[test]
fn a_template_tag_whose_ends_share_a_percent_sign_is_an_error() {
    for source in ["{%}", "{%}%}", "{% if x %}{%}", "{%", "%}{%}"] {
        assert!(ChatTemplate::new(source, None, None).is_err(), "{source}");
    }
}
