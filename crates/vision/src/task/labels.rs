//! Names of classes.

/// Names that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelSet {
    /// The 1000 of ImageNet's challenge.
    ImageNet,
    /// The 80 of COCO.
    Coco,
    /// The same under COCO's own numbers, which have gaps; 0 is nothing.
    Coco91,
    /// The 20 of Pascal VOC; 0 is the background.
    Voc,
    /// Text.
    Text,
    /// Whether a line of text stands upright or on its head.
    Direction,
    /// None: classes have numbers.
    Numbers,
}

const IMAGENET: &str = include_str!("labels/imagenet.txt");
const COCO: &str = include_str!("labels/coco.txt");
const COCO_GAPS: [usize; 10] = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83];
const VOC: &str = "background aeroplane bicycle bird boat bottle bus car cat chair cow table dog \
                   horse motorbike person plant sheep sofa train screen";

/// What classes are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<String>);

impl Labels {
    /// A set's names if it has as many as there are classes, else none.
    pub fn known(set: LabelSet, classes: usize) -> Labels {
        let names: Vec<&str> = match set {
            LabelSet::ImageNet => IMAGENET.lines().collect(),
            LabelSet::Coco => COCO.lines().collect(),
            LabelSet::Coco91 => {
                let mut names = COCO.lines();
                let mut name = |i: usize| match i == 0 || COCO_GAPS.contains(&i) {
                    true => Some("nothing"),
                    false => names.next(),
                };
                (0..91).filter_map(&mut name).collect()
            }
            LabelSet::Voc => VOC.split_whitespace().collect(),
            LabelSet::Text => vec!["text"],
            LabelSet::Direction => vec!["upright", "upside down"],
            LabelSet::Numbers => vec![],
        };
        match names.len() == classes {
            true => Labels(names.into_iter().map(str::to_owned).collect()),
            false => Labels::default(),
        }
    }

    /// From a file's text, one name a line.
    pub fn lines(text: &str) -> Labels {
        Labels(text.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// Those that a model's metadata name: `sedge.labels`, one a line, or `names` as ultralytics'
    /// exports have it, a dictionary from numbers to names.
    pub(super) fn of(metadata: &[(String, String)]) -> Option<Labels> {
        let value = |key: &str| metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        if let Some(text) = value("sedge.labels") {
            return Some(Labels::lines(text));
        }
        dictionary(value("names")?).map(Labels)
    }

    /// The name of a class.
    pub fn name(&self, class: usize) -> String {
        match self.0.get(class) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => format!("class {class}"),
        }
    }
}

/// `{0: 'a', 1: "b's"}`, in Python's manner. Numbers count from 0 without gaps.
fn dictionary(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('{')?;
    let mut names = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.starts_with('}') {
            return Some(names);
        }
        let (number, after) = rest.split_once(':')?;
        let number = number.trim().trim_matches(['"', '\'']);
        if number.parse::<usize>().ok()? != names.len() {
            return None;
        }
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let mut name = String::new();
        let mut chars = after.char_indices().skip(1);
        rest = loop {
            match chars.next()? {
                (_, '\\') => name.push(chars.next()?.1),
                (i, c) if c == quote => break &after[i + 1..],
                (_, c) => name.push(c),
            }
        };
        names.push(name);
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_their_numbers() {
        for (set, classes, i, name) in [
            (LabelSet::ImageNet, 1000, 207, "golden retriever"),
            (LabelSet::Coco, 80, 16, "dog"),
            (LabelSet::Coco, 80, 79, "toothbrush"),
            (LabelSet::Coco91, 91, 18, "dog"),
            (LabelSet::Coco91, 91, 90, "toothbrush"),
            (LabelSet::Voc, 21, 15, "person"),
            (LabelSet::Voc, 19, 15, "class 15"),
        ] {
            assert_eq!(Labels::known(set, classes).name(i), name);
        }
    }

    #[test]
    fn a_dictionary_of_names_is_read_and_others_are_not() {
        let read = |text: &str| dictionary(text);
        let names = vec!["cat".to_owned(), "dog's ear".to_owned()];
        assert_eq!(read(r#"{0: 'cat', 1: "dog's ear"}"#), Some(names.clone()));
        assert_eq!(read(r"{0:'cat',1:'dog\'s ear'}"), Some(names));
        for text in [
            "", "{", "{0", "{0:", "{0:'", "{1:'a'}", "{0: cat}", "{0:'a\\",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
