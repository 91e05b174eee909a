//! Weights that are no safetensors: what there is instead, and the command that converts it.

/// What a list of file names holds in place of safetensors, and what to do about it. `source` is what a Python program would load: a folder
/// or a name on the hub.
pub(crate) fn foreign_weights(names: &[String], source: &str) -> (Option<String>, String) {
    let first = |endings: &[&str]| {
        let mut all: Vec<&String> = names
            .iter()
            .filter(|name| {
                let name = name.to_ascii_lowercase();
                endings.iter().any(|ending| name.ends_with(ending)) && !name.starts_with("training_args")
            })
            .collect();
        all.sort();
        all.first().map(|name| (*name).clone())
    };
    let python = |load: String| {
        format!(
            "convert it with Python: from transformers import AutoModelForCausalLM, AutoTokenizer; {load}.save_pretrained(\"NEW\"); \
             AutoTokenizer.from_pretrained(\"{source}\").save_pretrained(\"NEW\"), and give the folder NEW"
        )
    };
    let load = |more: &str| format!("AutoModelForCausalLM.from_pretrained(\"{source}\"{more})");
    if let Some(file) = first(&[".bin", ".bin.index.json"]) {
        return (Some(file), python(load("")));
    }
    if let Some(file) = first(&[".gguf"]) {
        let remedy = python(load(&format!(", gguf_file=\"{file}\"")));
        return (
            Some(file),
            format!("{remedy}; the model that the file was made from has weights that were not quantized"),
        );
    }
    if let Some(file) = first(&[".pt", ".pth", ".ckpt"]) {
        let remedy = format!(
            "convert it with Python: import torch; from safetensors.torch import save_file; \
             save_file(torch.load(\"{file}\", weights_only=True), \"model.safetensors\"), whose tensors must have the names that \
             transformers gives them"
        );
        return (Some(file), remedy);
    }
    if let Some(file) = first(&[".safetensors"]) {
        let remedy = "name the weights model.safetensors, or give the folder of the model that an adapter was merged into".into();
        return (Some(file), remedy);
    }
    (None, "give a model folder in Hugging Face layout".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_names_the_file_and_the_command() {
        let told = |names: &[&str]| {
            foreign_weights(&names.iter().map(ToString::to_string).collect::<Vec<_>>(), "some/folder")
        };
        let (found, remedy) = told(&["training_args.bin", "pytorch_model.bin", "config.json"]);
        assert_eq!(found.as_deref(), Some("pytorch_model.bin"));
        assert!(
            remedy.contains("AutoModelForCausalLM.from_pretrained(\"some/folder\").save_pretrained"),
            "{remedy}"
        );
        let (found, remedy) = told(&["m-Q4_K_M.GGUF"]);
        assert_eq!(found.as_deref(), Some("m-Q4_K_M.GGUF"));
        assert!(remedy.contains("gguf_file=\"m-Q4_K_M.GGUF\""), "{remedy}");
        assert!(told(&["consolidated.00.pth"]).1.contains("torch.load(\"consolidated.00.pth\""));
        assert!(told(&["model.pt"]).1.contains("save_file"));
        assert!(told(&["adapter_model.safetensors"]).1.contains("adapter"));
        assert_eq!(told(&["config.json"]).0, None);
    }
}
