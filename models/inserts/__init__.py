"""What can be put into a model, by name; see `models.insertion`."""

# Name: module and class. Modules are imported when a model has them.
INSERTS = {
  "adapter": ("models.inserts.adapter", "Adapter"),
  "ia3": ("models.inserts.ia3", "IA3"),
  "lora": ("models.inserts.lora", "LoRA"),
  "p_adapter": ("models.inserts.p_adapter", "PAdapter"),
  "shift": ("models.inserts.shift", "Shift"),
  "tau_gate": ("models.inserts.tau_gate", "TauGate"),
}
