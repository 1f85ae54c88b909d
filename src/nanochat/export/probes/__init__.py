"""Programs that load an export as its users do, in separate processes. They
import no code of ours."""
