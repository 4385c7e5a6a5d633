"""The four architectures, one flat folder that can travel to the Hub beside a checkpoint.

Rule: files here import each other only by their own name with a single leading dot (the name of the file, then
`import`, then the names), and otherwise nothing but torch, transformers, timm and huggingface_hub. `save_pretrained`
finds the files to copy with a regular expression that understands no other form.
"""
