"""Programs that load an export as its users do, in processes of their own. They
import nothing of ours."""
